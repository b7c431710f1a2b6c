// a + b, and rms_norm of the sum, in one: the same operations in the same order as in those two files. A workgroup makes a group of
// n values. [G, n] → same, twice
struct Params {
    n: u32,
    groups: u32, // G
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weight: array<f32>;    // [n]
@group(0) @binding(1) var<storage, read> a: array<f32>;         // [G, n]
@group(0) @binding(2) var<storage, read> b: array<f32>;         // [G, n]
@group(0) @binding(3) var<storage, read_write> sum: array<f32>; // [G, n]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;   // [G, n]

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let g = group.y * grid.x + group.x;
    let start = min(g, p.groups - 1u) * p.n;
    var squares = 0.0;
    for (var i = id.x; i < p.n; i += THREADS) {
        let v = a[start + i] + b[start + i];
        if g < p.groups {
            sum[start + i] = v;
        }
        squares = fma(v, v, squares);
    }
    let scale = inverseSqrt(sum_all(id.x, squares) / f32(p.n) + p.eps);
    if g < p.groups {
        // Each thread reads back only what it wrote.
        for (var i = id.x; i < p.n; i += THREADS) {
            y[start + i] = sum[start + i] * scale * weight[i];
        }
    }
}
