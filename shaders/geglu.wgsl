// gelu(gate) · up, elementwise, gelu by tanh: g · sigmoid(2z), z = √(2/π)·(g + 0.044715·g³). The sigmoid uses e^-|2z|, which cannot
// overflow, and no tanh, which WGSL does not bound.
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
        let twice = 1.5957692 * (g + 0.044715 * (g * g * g));
        let e = exp_f32(-abs(twice));
        let sigmoid = select(e, 1.0, twice >= 0.0) / (1.0 + e);
        y[n] = g * sigmoid * up[n];
    }
}
