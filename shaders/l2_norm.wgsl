// x / √(Σx² + eps) of heads of D values, of which a row of x has some from column `first` on, a workgroup a head. Order of the sum of squares:
// THREADS threads take turns over the terms, then a tree. [T, cols] → [T, heads, D]
struct Params {
    n: u32,      // D
    groups: u32, // T · heads
    heads: u32,
    cols: u32,
    first: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;       // [T, cols]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [T, heads, D]

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let g = group.y * grid.x + group.x;
    let head = min(g, p.groups - 1u);
    let start = head / p.heads * p.cols + p.first + head % p.heads * p.n;
    var squares = 0.0;
    for (var i = id.x; i < p.n; i += THREADS) {
        let v = x[start + i];
        squares = fma(v, v, squares);
    }
    let scale = inverseSqrt(sum_all(id.x, squares) + p.eps);
    if g < p.groups {
        for (var i = id.x; i < p.n; i += THREADS) {
            y[g * p.n + i] = x[start + i] * scale;
        }
    }
}
