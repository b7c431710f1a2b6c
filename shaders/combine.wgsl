// Σ_k weights[t, k] · down[t, k, ·], k ascending. A thread makes one value. [T, K, H], [T, K] → [T, H]
struct Params {
    n: u32,    // T · H
    cols: u32, // H
    k: u32,    // K
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> down: array<f32>;    // [T, K, H]
@group(0) @binding(1) var<storage, read> weights: array<f32>; // [T, K]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, H]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.n {
        y[n] = combined(n);
    }
}
