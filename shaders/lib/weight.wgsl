// A quantized matrix as every kernel sees it, whatever its type. A row is a run of blocks, a block of pairs: 32 weights in two
// runs of 16 columns that share bytes. A type's file in quant/ gives
//   PAIRS              pairs in a block
//   columns(i, h)      where run h (0 or 1) of pair i of a row starts, in groups of four columns
//   block(row, tail, b)  what the weights of block b share (scales), and where it starts
//   weights(s, c, h)   the 16 weights of run h of pair c of that block, column j holding weights 4j to 4j + 3
// They read vec4 number `at` of the piece by stored(at), which lib/weight_buffer.wgsl or lib/weight_texture.wgsl gives.
// `row` is where the row starts and `tail` where its second plane starts, both counted in vec4<u32>; see
// src/backend/gpu/layout.rs for the layouts. Behind its last row a piece has the codes of the type's grid, where it has one (lib/grid.wgsl),
// and then the weight's scales, where it has some.

// The piece of a matrix that a kernel reads: the first of its parameters.
struct Piece {
    pairs: u32,  // pairs in a row, ⌈K / 32⌉
    stride: u32, // vec4 in a row
    tail: u32,   // vec4 from a row's start to its second plane
    rows: u32,   // N: rows of the whole matrix, or of one expert
    first: u32,  // the piece holds rows first to first + count - 1, counted through all experts
    count: u32,
    scales: u32, // vec4 from its start to the scales of its experts, 0 where it has none
}

// What a product with an expert is multiplied by, as the last thing: 1 where the weight has no scales.
fn scale_of(expert: u32) -> f32 {
    if p.piece.scales == 0u {
        return 1.0;
    }
    return bitcast<f32>(stored(p.piece.scales + (expert >> 2u))[expert & 3u]);
}

// The weights of run h of pair i of a row.
fn row_weights(row: u32, tail: u32, i: u32, h: u32) -> mat4x4<f32> {
    return weights(block(row, tail, i / PAIRS), i % PAIRS, h);
}
