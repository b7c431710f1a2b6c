// probs at ids, divided by their sum when `renormalise`, times `scale`; k ascending. A thread a position. [T, E], [T, K] → [T, K]
struct Params {
    positions: u32, // T
    experts: u32,   // E
    k: u32,         // K
    renormalise: u32,
    scale: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> probs: array<f32>;         // [T, E]
@group(0) @binding(1) var<storage, read> ids: array<u32>;           // [T, K]
@group(0) @binding(2) var<storage, read_write> weights: array<f32>; // [T, K]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < p.positions {
        weigh(id.x);
    }
}
