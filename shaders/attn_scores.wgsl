// q·k · scale for every query head and the KV head that it shares; 0 where s > start + t or s ≤ start + t − window. A thread makes one score.
// Order of a sum: four accumulators take the values in turn, then they are added.
// [T, heads·D], cache [capacity, kv_heads·D] → [heads, T, S]
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
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [T, heads, D / 4]
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>; // [capacity, kv_heads, D / 4]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [heads, T, S]

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let s = group.x * THREADS + id.x;
    let t = group.y;
    let head = group.z;
    if s < p.seen {
        var score = 0.0;
        let first = max(p.start + t + 1u, p.window) - p.window;
        if s >= first && s <= p.start + t {
            let q_at = (t * p.heads + head) * p.quads;
            let k_at = (s * p.kv_heads + head / (p.heads / p.kv_heads)) * p.quads;
            var sum = vec4<f32>();
            for (var i = 0u; i < p.quads; i++) {
                sum = fma(q[q_at + i], k[k_at + i], sum);
            }
            score = ((sum.x + sum.y) + (sum.z + sum.w)) * p.scale;
        }
        y[(head * grid.y + t) * p.seen + s] = score;
    }
}
