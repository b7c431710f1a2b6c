// x · sigmoid(gate), a gate a row. The sigmoid uses e^-|gate|, which cannot overflow. [T, N], [T, 1] → [T, N]
struct Params {
    n: u32,    // T · N
    cols: u32, // N
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;       // [T, N]
@group(0) @binding(1) var<storage, read> gate: array<f32>;    // [T]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, N]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.n {
        let g = gate[n / p.cols];
        let e = exp_f32(-abs(g));
        let sigmoid = select(e, 1.0, g >= 0.0) / (1.0 + e);
        y[n] = x[n] * sigmoid;
    }
}
