// Sums and maxima over a workgroup of THREADS threads, in a tree in workgroup memory: no dependence on the subgroup size.
var<workgroup> cells: array<f32, THREADS>;

// The sum of every thread's value, in every thread.
fn sum_all(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    cells[lane] = value;
    for (var step = THREADS / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if lane < step {
            cells[lane] += cells[lane + step];
        }
    }
    workgroupBarrier();
    return cells[0];
}

// The largest of every thread's value, in every thread. With NaN among them the result may be any of the others: a
// softmax over NaN is NaN through its sum.
fn max_all(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    cells[lane] = value;
    for (var step = THREADS / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if lane < step {
            cells[lane] = max(cells[lane], cells[lane + step]);
        }
    }
    workgroupBarrier();
    return cells[0];
}
