// sigmoid(gate) · up, elementwise. The sigmoid uses e^-|gate|, which cannot overflow.
struct Params {
    n: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> gate: array<f32>;    // [n]
@group(0) @binding(1) var<storage, read> up: array<f32>;      // [n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [n]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.n {
        let g = gate[n];
        let e = exp_f32(-abs(g));
        let sigmoid = select(e, 1.0, g >= 0.0) / (1.0 + e);
        y[n] = sigmoid * up[n];
    }
}
