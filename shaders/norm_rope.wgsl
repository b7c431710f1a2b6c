// rms_norm over each head, then rope, in one: the same operations in the same order as in those two files. A workgroup makes a head of
// a position. [T, heads·D] → same
struct Params {
    n: u32,      // D
    groups: u32, // T · heads
    heads: u32,
    start: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weight: array<f32>;       // [D]
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>; // [positions, D / 2]: cos, sin
@group(0) @binding(2) var<storage, read> x: array<f32>;            // [T, heads, D]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;      // [T, heads, D]

// What is normalised (lib/rms.wgsl).
fn value(at: u32) -> f32 {
    return x[at];
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let g = group.y * grid.x + group.x; // t · heads + head
    let start = min(g, p.groups - 1u) * p.n;
    let scale = rms_scale(id.x, start);
    if g < p.groups {
        let half_dim = p.n / 2u;
        for (var i = id.x; i < half_dim; i += THREADS) {
            let a = x[start + i] * scale * weight[i];
            let b = x[start + half_dim + i] * scale * weight[half_dim + i];
            let turn = angles[(p.start + g / p.heads) * half_dim + i];
            y[start + i] = a * turn.x - b * turn.y;
            y[start + half_dim + i] = b * turn.x + a * turn.y;
        }
    }
}
