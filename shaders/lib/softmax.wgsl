// Softmax of x[start..start + n] into the same places of probs, n ≥ 1, by a whole workgroup.
// Order of the sum: THREADS threads take turns over the terms, then a tree (lib/row.wgsl).
fn softmax(start: u32, n: u32, lane: u32) {
    var largest = x[start];
    for (var i = lane; i < n; i += THREADS) {
        largest = max(largest, x[start + i]);
    }
    largest = max_all(lane, largest);
    var sum = 0.0;
    for (var i = lane; i < n; i += THREADS) {
        let e = exp_f32(x[start + i] - largest);
        probs[start + i] = e;
        sum += e;
    }
    sum = sum_all(lane, sum);
    // Each thread reads back only what it wrote.
    for (var i = lane; i < n; i += THREADS) {
        probs[start + i] = probs[start + i] / sum;
    }
}
