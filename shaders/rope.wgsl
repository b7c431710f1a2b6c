// Rotary embedding: in each head, of its R dimensions from the first that turns on, pair i turns by the angle of position start + t. It is
// the values i and i + R/2 of these (NEOX), or 2i and 2i + 1 (NORM). The other dimensions are copied, two by a thread.
// Cosines and sines come from a table, because WGSL's own are only good to 2⁻¹¹. [T, heads·D] → same
struct Params {
    pairs: u32,   // T · heads · D/2
    heads: u32,
    half_dim: u32, // D / 2
    turned: u32, // R / 2
    first: u32,  // of the dimensions that turn
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
        let start = head * 2u * p.half_dim;
        if i >= p.turned {
            // Of the others in their order, two, each before or behind those that turn.
            let others = vec2<u32>(2u * (i - p.turned)) + vec2<u32>(0u, 1u);
            let at = start + others + select(vec2<u32>(), vec2<u32>(2u * p.turned), others >= vec2<u32>(p.first));
            y[at.x] = x[at.x];
            y[at.y] = x[at.y];
        } else {
            let a = start + p.first + select(i, 2u * i, norm);
            let b = a + select(p.turned, 1u, norm);
            let turn = angles[(p.start + head / p.heads) * p.turned + i];
            y[a] = x[a] * turn.x - x[b] * turn.y;
            y[b] = x[b] * turn.x + x[a] * turn.y;
        }
    }
}
