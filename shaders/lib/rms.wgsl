// The scale of RMS normalisation. Order of the sum of squares: THREADS threads take turns over the terms, then a tree.

// 1/√(mean(v²) + eps) over the p.n values `value(start)` on, in every thread.
fn rms_scale(lane: u32, start: u32) -> f32 {
    var squares = 0.0;
    for (var i = lane; i < p.n; i += THREADS) {
        let v = value(start + i);
        squares = fma(v, v, squares);
    }
    return inverseSqrt(sum_all(lane, squares) / f32(p.n) + p.eps);
}
