// Softmax over all experts. A workgroup makes a position. [T, E] → same
// Order of the sum: that of lib/softmax.wgsl.
struct Params {
    experts: u32, // E
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;           // [T, E]
@group(0) @binding(1) var<storage, read_write> probs: array<f32>; // [T, E]

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    softmax(group.x * p.experts, p.experts, id.x);
}
