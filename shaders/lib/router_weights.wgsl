// probs at ids, divided by their sum when p.renormalise, times p.scale; k ascending.

// The value at an id; NaN where the id names no expert.
fn chosen(t: u32, k: u32) -> f32 {
    let e = ids[t * p.k + k];
    let value = probs[t * p.experts + min(e, p.experts - 1u)];
    return select(make_nan(p.k & 0u), value, e < p.experts);
}

// The weights of position t.
fn weigh(t: u32) {
    var sum = 1.0;
    if p.renormalise != 0u {
        sum = chosen(t, 0u);
        for (var k = 1u; k < p.k; k++) {
            sum += chosen(t, k);
        }
    }
    for (var k = 0u; k < p.k; k++) {
        weights[t * p.k + k] = chosen(t, k) / sum * p.scale;
    }
}
