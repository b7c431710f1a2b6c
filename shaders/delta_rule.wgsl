// The gated delta rule. A value head's state S [D, D] is 0 before the first position, and at each position s
//     S ← e^decay · S,    S ← S + k (beta · (v − Sᵀk))ᵀ,    and from `start` on y = Sᵀq · scale.
// Columns of S have nothing to do with each other: a workgroup makes COLUMNS of a head, and its threads hold them, a thread every LANES-th quad of
// one column. Order of a sum, Sᵀk or Sᵀq: LANES threads take turns over the quads of D, the four values of a quad on accumulators of their
// own, which are then added, and then the threads' sums in a tree.
// Of the first `kept` positions the state is `before`, as another call left it in `after`: the same values as of all positions in one call.
// [T, Hk·D], caches [capacity, Hk·D], [capacity, v_cols], [capacity, Hv] twice, [Hv, D, D] → [T, Hv·D], [Hv, D, D]
struct Params {
    quads: u32,     // D / 4, at most STATE_QUADS · LANES
    heads: u32,     // Hv
    key_heads: u32, // Hk
    tiled: u32,     // whether head h has the key head h mod Hk, and not h / (Hv / Hk)
    kept: u32,      // at most start; 0: `before` is not read
    start: u32,
    seen: u32,      // S
    v_cols: u32,    // of a row of v
    v_first: u32,   // the values of head 0 begin here
    scale: f32,     // 1 / √D
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [T, Hk, D / 4]
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>; // [capacity, Hk, D / 4]
@group(0) @binding(2) var<storage, read> v: array<f32>;       // [capacity, v_cols]
@group(0) @binding(3) var<storage, read> decay: array<f32>;   // [capacity, Hv]
@group(0) @binding(4) var<storage, read> beta: array<f32>;    // [capacity, Hv]
@group(0) @binding(5) var<storage, read> before: array<vec4<f32>>;      // [Hv, D / 4, D]: quads of a column of S, one column after the other
@group(0) @binding(6) var<storage, read_write> after: array<vec4<f32>>; // the same
@group(0) @binding(7) var<storage, read_write> y: array<f32>;           // [T, Hv, D]

// Two sets of a value for each thread. Sums use them in turn: who writes one has passed the barrier of the sum before, in front of which
// everybody had read what the sum before that left in it.
var<workgroup> cells: array<f32, 2 * LANES * COLUMNS>;

const_assert LANES == 16u;

// What four threads of a column have written.
fn four(at: u32) -> vec4<f32> {
    return vec4<f32>(cells[at], cells[at + COLUMNS], cells[at + 2u * COLUMNS], cells[at + 3u * COLUMNS]);
}

// The sum over the LANES threads of a column, in each of them. `cell` is this thread's place in one of the sets.
fn sum_column(cell: u32, lane: u32, values: vec4<f32>) -> f32 {
    cells[cell] = (values.x + values.y) + (values.z + values.w);
    workgroupBarrier();
    let first = cell - lane * COLUMNS;
    let sums = (four(first) + four(first + 8u * COLUMNS)) + (four(first + 4u * COLUMNS) + four(first + 12u * COLUMNS));
    return (sums.x + sums.z) + (sums.y + sums.w);
}

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let lane = id.y;
    let head = group.y;
    let key_head = select(head / (p.heads / p.key_heads), head % p.key_heads, p.tiled != 0u);
    let column = group.x * COLUMNS + id.x;
    let mine = column < 4u * p.quads;
    let v_at = p.v_first + head * 4u * p.quads + min(column, 4u * p.quads - 1u);
    var cell = lane * COLUMNS + id.x;
    var other = cell + LANES * COLUMNS;
    let quads_at = head * p.quads * 4u * p.quads + column;
    var state: array<vec4<f32>, STATE_QUADS>; // 0
    if p.kept > 0u && mine {
        for (var i = 0u; i < STATE_QUADS; i++) {
            let quad = i * LANES + lane;
            if quad < p.quads {
                state[i] = before[quads_at + quad * 4u * p.quads];
            }
        }
    }
    for (var s = p.kept; s < p.seen; s++) {
        let k_at = (s * p.key_heads + key_head) * p.quads;
        let fade = exp_f32(decay[s * p.heads + head]);
        var held = vec4<f32>();
        for (var i = 0u; i < STATE_QUADS; i++) {
            let quad = i * LANES + lane;
            if quad < p.quads {
                state[i] *= fade;
                held = fma(state[i], k[k_at + quad], held);
            }
        }
        let delta = beta[s * p.heads + head] * (v[s * p.v_cols + v_at] - sum_column(cell, lane, held));
        for (var i = 0u; i < STATE_QUADS; i++) {
            let quad = i * LANES + lane;
            if quad < p.quads {
                state[i] = fma(k[k_at + quad], vec4<f32>(delta), state[i]);
            }
        }
        if s >= p.start {
            let t = s - p.start;
            let q_at = (t * p.key_heads + key_head) * p.quads;
            held = vec4<f32>();
            for (var i = 0u; i < STATE_QUADS; i++) {
                let quad = i * LANES + lane;
                if quad < p.quads {
                    held = fma(state[i], q[q_at + quad], held);
                }
            }
            let sum = sum_column(other, lane, held);
            if lane == 0u && mine {
                y[(t * p.heads + head) * 4u * p.quads + column] = sum * p.scale;
            }
        } else {
            let next = other;
            other = cell;
            cell = next;
        }
    }
    if mine {
        for (var i = 0u; i < STATE_QUADS; i++) {
            let quad = i * LANES + lane;
            if quad < p.quads {
                after[quads_at + quad * 4u * p.quads] = state[i];
            }
        }
    }
}
