// a + Σ_k weights[t, k] · down[t, k, ·], and rms_norm of the sum, in one: the same operations in the same order as in combine_add and rms_norm. A
// workgroup makes a row. [T, H], [T, K, H], [T, K] → [T, H], twice
// Order of the sum over k: that of lib/combine.wgsl.
struct Params {
    n: u32,      // H
    groups: u32, // T
    cols: u32,   // H
    k: u32,      // K
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weight: array<f32>;    // [H]
@group(0) @binding(1) var<storage, read> a: array<f32>;         // [T, H]
@group(0) @binding(2) var<storage, read> down: array<f32>;      // [T, K, H]
@group(0) @binding(3) var<storage, read> weights: array<f32>;   // [T, K]
@group(0) @binding(4) var<storage, read_write> sum: array<f32>; // [T, H]
@group(0) @binding(5) var<storage, read_write> y: array<f32>;   // [T, H]

// What is normalised (lib/rms.wgsl): each thread reads what it has written itself.
fn value(at: u32) -> f32 {
    return sum[at];
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let g = group.y * grid.x + group.x;
    let start = min(g, p.groups - 1u) * p.n;
    if g < p.groups {
        for (var i = id.x; i < p.n; i += THREADS) {
            sum[start + i] = a[start + i] + combined(start + i);
        }
    }
    let scale = rms_scale(id.x, start);
    if g < p.groups {
        for (var i = id.x; i < p.n; i += THREADS) {
            y[start + i] = sum[start + i] * scale * weight[i];
        }
    }
}
