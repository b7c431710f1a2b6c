// x + bias, which is a row, on every row. [T, N] → same
struct Params {
    n: u32,    // T · N
    cols: u32, // N
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> bias: array<f32>;    // [N]
@group(0) @binding(1) var<storage, read> x: array<f32>;       // [T, N]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, N]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.n {
        y[n] = x[n] + bias[n % p.cols];
    }
}
