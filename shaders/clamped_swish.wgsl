// g · sigmoid(1.702·g) · (1 + up), elementwise, g = min(gate, 7), up held to ±7. The sigmoid uses e^-|1.702·g|, which cannot overflow.
struct Params {
    n: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> gate: array<f32>;    // [n]
@group(0) @binding(1) var<storage, read> up: array<f32>;      // [n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [n]

const ALPHA: f32 = 1.702;
const LIMIT: f32 = 7.0;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.n {
        // Not min and clamp, which need not keep NaN.
        let g = select(gate[n], LIMIT, gate[n] > LIMIT);
        let low = select(up[n], -LIMIT, up[n] < -LIMIT);
        let u = select(low, LIMIT, up[n] > LIMIT);
        let scaled = ALPHA * g;
        let e = exp_f32(-abs(scaled));
        let sigmoid = select(e, 1.0, scaled >= 0.0) / (1.0 + e);
        y[n] = g * sigmoid * (1.0 + u);
    }
}
