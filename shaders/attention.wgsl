// attn_scores, attn_probs and attn_context in one, with their orders of sums: the same bits, and no [heads, T, S] in memory. A workgroup
// makes one head of one position. Of more keys than it can keep the scores of, it makes these again when it comes back to them.
// [T, heads·D], caches [capacity, kv_heads·D] → [T, heads·D]
struct Params {
    quads: u32,    // D / 4
    heads: u32,
    kv_heads: u32,
    start: u32,
    seen: u32,     // S
    window: u32,   // keys that a position sees, its own among them
    scale: f32,    // 1 / √D, or what the model has
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;       // [T, heads, D / 4]
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;       // [capacity, kv_heads, D / 4]
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;       // [capacity, kv_heads, D / 4]
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>; // [T, heads, D / 4]

// Some of the scores, then e to them, then the probabilities; a position counts from the first key that is seen. Until the context, a thread reads only what it wrote.
var<workgroup> row: array<f32, KEPT>;
var<workgroup> partial: array<vec4<f32>, THREADS>;

// Columns of vec4 that the threads make side by side; rows of threads, each of which has LANES / SHARE of attn_context's lanes.
const SHARE: u32 = THREADS / COLUMNS;
const TURNS: u32 = LANES / SHARE;
// Heads have at most so many times COLUMNS columns.
const TIMES: u32 = 4;

fn score(q_at: u32, kv_head: u32, s: u32) -> f32 {
    let k_at = (s * p.kv_heads + kv_head) * p.quads;
    var sum = vec4<f32>();
    for (var i = 0u; i < p.quads; i++) {
        sum = fma(q[q_at + i], k[k_at + i], sum);
    }
    return ((sum.x + sum.y) + (sum.z + sum.w)) * p.scale;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let head = group.x;
    let t = group.y;
    let lane = id.x;
    let q_at = (t * p.heads + head) * p.quads;
    let kv_head = head / (p.heads / p.kv_heads);
    let visible = min(p.start + t + 1u, p.seen);
    let first_key = max(visible, p.window) - p.window;
    let keys = visible - first_key;
    let kept = keys <= KEPT;

    var largest = score(q_at, kv_head, first_key + min(lane, keys - 1u));
    for (var s = lane; s < keys; s += THREADS) {
        let x = score(q_at, kv_head, first_key + s);
        row[s % KEPT] = x;
        largest = max(largest, x);
    }
    largest = max_all(lane, largest);

    var sum = 0.0;
    for (var s = lane; s < keys; s += THREADS) {
        if !kept {
            row[s % KEPT] = score(q_at, kv_head, first_key + s);
        }
        let e = exp_f32(row[s % KEPT] - largest);
        row[s % KEPT] = e;
        sum += e;
    }
    sum = sum_all(lane, sum);

    // Sums by column and lane: [TIMES, TURNS].
    var sums: array<vec4<f32>, TIMES * TURNS>;
    let column = lane % COLUMNS;
    let first_lane = lane / COLUMNS;
    for (var first = 0u; first < keys; first += KEPT) {
        let end = min(first + KEPT, keys);
        for (var s = first + lane; s < end; s += THREADS) {
            if !kept {
                // Rounded in between, as where they are kept.
                row[s - first] = score(q_at, kv_head, first_key + s);
                row[s - first] = exp_f32(row[s - first] - largest);
            }
            row[s - first] = row[s - first] / sum;
        }
        workgroupBarrier();
        for (var time = 0u; time * COLUMNS < p.quads; time++) {
            let quad = time * COLUMNS + column;
            if quad < p.quads {
                for (var turn = 0u; turn < TURNS; turn++) {
                    var part = sums[time * TURNS + turn];
                    for (var s = first + turn * SHARE + first_lane; s < end; s += LANES) {
                        part = fma(vec4<f32>(row[s - first]), v[((first_key + s) * p.kv_heads + kv_head) * p.quads + quad], part);
                    }
                    sums[time * TURNS + turn] = part;
                }
            }
        }
        workgroupBarrier();
    }

    // attn_context's tree over its lanes, of which a thread has every SHARE-th.
    for (var time = 0u; time * COLUMNS < p.quads; time++) {
        for (var step = TURNS / 2u; step > 0u; step /= 2u) {
            for (var turn = 0u; turn < step; turn++) {
                sums[time * TURNS + turn] += sums[time * TURNS + turn + step];
            }
        }
        partial[lane] = sums[time * TURNS];
        for (var step = SHARE / 2u; step > 0u; step /= 2u) {
            workgroupBarrier();
            if first_lane < step {
                partial[lane] += partial[lane + step * COLUMNS];
            }
        }
        let quad = time * COLUMNS + column;
        if first_lane == 0u && quad < p.quads {
            y[q_at + quad] = partial[lane];
        }
        workgroupBarrier();
    }
}
