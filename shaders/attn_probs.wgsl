// Softmax over s ≤ start + t, of those the last `window`; 0 elsewhere. A workgroup makes a row. [heads, T, S] → same
// Order of the sum: that of lib/softmax.wgsl.
struct Params {
    start: u32,
    seen: u32,   // S
    window: u32, // keys that a position sees, its own among them
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;           // [heads, T, S]
@group(0) @binding(1) var<storage, read_write> probs: array<f32>; // [heads, T, S]

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
    softmax(start + first, visible - first, id.x);
    for (var s = visible + id.x; s < p.seen; s += THREADS) {
        probs[start + s] = 0.0;
    }
}
