// What a slot's expert gives it (lib/stack.wgsl).

// Writes output `row` of a slot, times the expert's scale, if the piece holds the row. An id that names no expert gives NaN, never another expert's answer.
fn put(e: Held, slot: u32, row: u32, sum: f32) {
    let value = sum * e.scale;
    if e.known && row >= e.first && row < e.end {
        y[slot * p.piece.rows + row] = value;
    }
    if !e.known && row < p.piece.rows {
        y[slot * p.piece.rows + row] = make_nan(p.piece.first & 0u);
    }
}
