// Softmax over s ≤ start + t; 0 beyond. A workgroup a row. [heads, T, S] → same
// The sum: 64 threads take turns over the terms, then a tree.
struct Params {
    start: u32,
    seen: u32, // S
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;       // [heads, T, S]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [heads, T, S]

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let t = group.x;
    let start = (group.y * grid.x + t) * p.seen;
    let visible = min(p.start + t + 1u, p.seen);
    var largest = x[start];
    for (var s = id.x; s < visible; s += THREADS) {
        largest = max(largest, x[start + s]);
    }
    largest = max_all(id.x, largest);
    var sum = 0.0;
    for (var s = id.x; s < visible; s += THREADS) {
        let e = exp_f32(x[start + s] - largest);
        y[start + s] = e;
        sum += e;
    }
    sum = sum_all(id.x, sum);
    // Each thread reads back only what it wrote.
    for (var s = id.x; s < p.seen; s += THREADS) {
        var prob = 0.0;
        if s < visible {
            prob = y[start + s] / sum;
        }
        y[start + s] = prob;
    }
}
