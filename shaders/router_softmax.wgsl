// The softmax of the logits at ids; k ascending. A thread a position. [T, E], [T, K] → [T, K]
struct Params {
    positions: u32, // T
    experts: u32,   // E
    k: u32,         // K
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<f32>;        // [T, E]
@group(0) @binding(1) var<storage, read> ids: array<u32>;           // [T, K]
@group(0) @binding(2) var<storage, read_write> weights: array<f32>; // [T, K]

// The logit at an id; NaN where the id names no expert.
fn chosen(t: u32, k: u32) -> f32 {
    let e = ids[t * p.k + k];
    let value = logits[t * p.experts + min(e, p.experts - 1u)];
    return select(make_nan(p.k & 0u), value, e < p.experts);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let t = id.x;
    if t < p.positions {
        // Whatever of NaN this takes for the largest, the sum is NaN.
        var largest = chosen(t, 0u);
        for (var k = 1u; k < p.k; k++) {
            largest = max(largest, chosen(t, k));
        }
        var sum = 0.0;
        for (var k = 0u; k < p.k; k++) {
            let e = exp_f32(chosen(t, k) - largest);
            weights[t * p.k + k] = e;
            sum += e;
        }
        for (var k = 0u; k < p.k; k++) {
            weights[t * p.k + k] = weights[t * p.k + k] / sum;
        }
    }
}
