// norm_rope of queries and of keys, in one: a workgroup makes a head of a position, in each position first those of the queries.
// [T, heads·D], [T, kv_heads·D] → same
struct Params {
    n: u32,      // D
    groups: u32, // T · (heads + kv_heads)
    heads: u32,
    kv_heads: u32,
    start: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q_weight: array<f32>;     // [D]
@group(0) @binding(1) var<storage, read> k_weight: array<f32>;     // [D]
@group(0) @binding(2) var<storage, read> angles: array<vec2<f32>>; // [positions, D / 2]: cos, sin
@group(0) @binding(3) var<storage, read> q: array<f32>;            // [T, heads, D]
@group(0) @binding(4) var<storage, read> k: array<f32>;            // [T, kv_heads, D]
@group(0) @binding(5) var<storage, read_write> q_y: array<f32>;    // [T, heads, D]
@group(0) @binding(6) var<storage, read_write> k_y: array<f32>;    // [T, kv_heads, D]

// Values of all queries. Those of keys are counted on from there.
fn queries() -> u32 {
    return p.groups / (p.heads + p.kv_heads) * p.heads * p.n;
}

// What is normalised (lib/rms.wgsl).
fn value(at: u32) -> f32 {
    if at >= queries() {
        return k[at - queries()];
    }
    return q[at];
}

fn weight(start: u32, i: u32) -> f32 {
    if start >= queries() {
        return k_weight[i];
    }
    return q_weight[i];
}

fn put(at: u32, turned: f32) {
    if at >= queries() {
        k_y[at - queries()] = turned;
    } else {
        q_y[at] = turned;
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let g = group.y * grid.x + group.x;
    let at = min(g, p.groups - 1u);
    let t = at / (p.heads + p.kv_heads);
    let head = at % (p.heads + p.kv_heads);
    let of_q = (t * p.heads + head) * p.n;
    let of_k = queries() + (t * p.kv_heads + head - p.heads) * p.n;
    let start = select(of_q, of_k, head >= p.heads);
    let scale = rms_scale(id.x, start);
    if g < p.groups {
        let half_dim = p.n / 2u;
        for (var i = id.x; i < half_dim; i += THREADS) {
            let a = value(start + i) * scale * weight(start, i);
            let b = value(start + half_dim + i) * scale * weight(start, half_dim + i);
            let turn = angles[(p.start + t) * half_dim + i];
            put(start + i, a * turn.x - b * turn.y);
            put(start + half_dim + i, b * turn.x + a * turn.y);
        }
    }
}
