// Softmax over all experts, a workgroup a position. [T, E] → same
// The sum: 64 threads take turns over the terms, then a tree.
struct Params {
    experts: u32, // E
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;       // [T, E]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [T, E]

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let start = group.x * p.experts;
    var largest = x[start];
    for (var e = id.x; e < p.experts; e += THREADS) {
        largest = max(largest, x[start + e]);
    }
    largest = max_all(id.x, largest);
    var sum = 0.0;
    for (var e = id.x; e < p.experts; e += THREADS) {
        let v = exp_f32(x[start + e] - largest);
        y[start + e] = v;
        sum += v;
    }
    sum = sum_all(id.x, sum);
    // Each thread reads back only what it wrote.
    for (var e = id.x; e < p.experts; e += THREADS) {
        y[start + e] = y[start + e] / sum;
    }
}
