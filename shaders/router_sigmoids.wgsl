// The sigmoid of each logit, of e^-|x|, which cannot overflow. [T, E] → same
struct Params {
    n: u32, // T · E
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;           // [T, E]
@group(0) @binding(1) var<storage, read_write> probs: array<f32>; // [T, E]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.n {
        let e = exp_f32(-abs(x[n]));
        probs[n] = select(e, 1.0, x[n] >= 0.0) / (1.0 + e);
    }
}
