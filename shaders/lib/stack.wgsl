// The rows of one matrix of a stack [E, N, n], an expert's or a head's, of which a piece may hold all, some or none: pieces are cut between
// rows, wherever the adapter's limit on a binding falls.
struct Held {
    known: bool, // whether the id names one of the p.experts
    base: u32,   // its first row, counted through all
    first: u32,  // the piece holds its rows first to end - 1
    end: u32,
    scale: f32,
}

fn held(expert: u32) -> Held {
    let known = expert < p.experts;
    let base = select(0u, expert, known) * p.piece.rows;
    let first = max(base, p.piece.first) - base;
    let end = min(max(min(base + p.piece.rows, p.piece.first + p.piece.count), base) - base, p.piece.rows);
    return Held(known, base, first, end, scale_of(select(0u, expert, known)));
}

// Whether the piece holds any of its rows `row` to `row + n - 1`.
fn holds_any(e: Held, row: u32, n: u32) -> bool {
    return e.known && row < e.end && row + n > e.first;
}

// Where its rows start in the piece, in vec4. One that the piece lacks gives the nearest that it holds.
fn starts(e: Held, rows: vec4<u32>) -> vec4<u32> {
    let near = clamp(rows, vec4<u32>(e.first), vec4<u32>(e.end - 1u));
    return (near + vec4<u32>(e.base) - vec4<u32>(p.piece.first)) * p.piece.stride;
}
