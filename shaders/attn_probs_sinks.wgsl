// attn_probs where each head has a sink: one more score of every row, after those of the keys, which has its share and no column. A
// workgroup makes a row. [heads, T, S], sinks [heads] → [heads, T, S]
// Order of the sum: THREADS threads take turns over the terms, the sink the last of them, then a tree (lib/row.wgsl).
struct Params {
    start: u32,
    seen: u32,   // S
    window: u32, // keys that a position sees, its own among them
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> sinks: array<f32>;       // [heads]
@group(0) @binding(1) var<storage, read> x: array<f32>;           // [heads, T, S]
@group(0) @binding(2) var<storage, read_write> probs: array<f32>; // [heads, T, S]

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let t = group.x;
    let start = (group.y * grid.x + t) * p.seen;
    let visible = min(p.start + t + 1u, p.seen);
    let first = max(visible, p.window) - p.window;
    for (var s = id.x; s < first; s += THREADS) {
        probs[start + s] = 0.0;
    }
    for (var s = visible + id.x; s < p.seen; s += THREADS) {
        probs[start + s] = 0.0;
    }
    let sink = sinks[group.y];
    let keys = visible - first;
    var largest = sink;
    for (var i = id.x; i < keys; i += THREADS) {
        largest = max(largest, x[start + first + i]);
    }
    largest = max_all(id.x, largest);
    var sum = 0.0;
    for (var i = id.x; i < keys; i += THREADS) {
        let e = exp_f32(x[start + first + i] - largest);
        probs[start + first + i] = e;
        sum += e;
    }
    if id.x == keys % THREADS {
        sum += exp_f32(sink - largest);
    }
    sum = sum_all(id.x, sum);
    // Each thread reads back only what it wrote.
    for (var i = id.x; i < keys; i += THREADS) {
        probs[start + first + i] = probs[start + first + i] / sum;
    }
}
