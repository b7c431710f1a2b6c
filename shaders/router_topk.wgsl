// The ids of the K largest values of each position, as lib/top_k.wgsl finds them. A workgroup makes a position. [T, E] → [T, K]
struct Params {
    experts: u32, // E
    k: u32,       // K ≤ E
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> probs: array<f32>;     // [T, E]
@group(0) @binding(1) var<storage, read_write> ids: array<u32>; // [T, K]

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    top_k(group.x, id.x);
}
