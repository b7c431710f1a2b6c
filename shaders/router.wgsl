// router_probs, router_topk and router_weights in one. A workgroup makes a position. [T, E] → [T, E], [T, K], [T, K]
// Order of the sums: those of lib/softmax.wgsl and lib/router_weights.wgsl.
struct Params {
    experts: u32, // E
    k: u32,       // K ≤ E
    renormalise: u32,
    scale: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;             // [T, E]
@group(0) @binding(1) var<storage, read_write> probs: array<f32>;   // [T, E]
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;     // [T, K]
@group(0) @binding(3) var<storage, read_write> weights: array<f32>; // [T, K]

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    softmax(group.x * p.experts, p.experts, id.x);
    // A thread looks only at the probabilities that it wrote itself.
    top_k(group.x, id.x);
    storageBarrier();
    // The first thread wrote the ids.
    if id.x == 0u {
        weigh(group.x);
    }
}
