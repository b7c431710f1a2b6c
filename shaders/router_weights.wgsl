// probs at ids, divided by their sum when `renormalise`; k ascending. A thread a position. [T, E], [T, K] → [T, K]
struct Params {
    positions: u32, // T
    experts: u32,   // E
    k: u32,         // K
    renormalise: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> probs: array<f32>;   // [T, E]
@group(0) @binding(1) var<storage, read> ids: array<u32>;     // [T, K]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, K]

// The value at an id; NaN where the id names no expert.
fn chosen(t: u32, k: u32) -> f32 {
    let e = ids[t * p.k + k];
    let value = probs[t * p.experts + min(e, p.experts - 1u)];
    return select(make_nan(p.k & 0u), value, e < p.experts);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let t = id.x;
    if t < p.positions {
        var sum = 1.0;
        if p.renormalise != 0u {
            sum = chosen(t, 0u);
            for (var k = 1u; k < p.k; k++) {
                sum += chosen(t, k);
            }
        }
        for (var k = 0u; k < p.k; k++) {
            y[t * p.k + k] = chosen(t, k) / sum;
        }
    }
}
