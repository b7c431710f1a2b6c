// Rotary embedding: in each head, of its first R dimensions pair i turns by the angle of position start + t. It is the values i and i + R/2
// (NEOX), or 2i and 2i + 1 (NORM). The other dimensions are copied, two by a thread.
// Cosines and sines come from a table, because WGSL's own are only good to 2⁻¹¹. [T, heads·D] → same
struct Params {
    pairs: u32,   // T · heads · D/2
    heads: u32,
    half_dim: u32, // D / 2
    turned: u32, // R / 2
    start: u32,
    neighbours: u32, // 1: NORM pairing, 0: NEOX
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> angles: array<vec2<f32>>; // [positions, R/2]: cos, sin
@group(0) @binding(1) var<storage, read> x: array<f32>;            // [T, heads, D]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;      // [T, heads, D]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.pairs {
        let i = n % p.half_dim;
        let head = n / p.half_dim; // t · heads + head
        let norm = p.neighbours == 1u;
        let copied = i >= p.turned;
        let a = head * 2u * p.half_dim + select(i, 2u * i, norm || copied);
        let b = a + select(p.turned, 1u, norm || copied);
        if copied {
            y[a] = x[a];
            y[b] = x[b];
        } else {
            let turn = angles[(p.start + head / p.heads) * p.turned + i];
            y[a] = x[a] * turn.x - x[b] * turn.y;
            y[b] = x[b] * turn.x + x[a] * turn.y;
        }
    }
}
