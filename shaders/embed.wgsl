// Row tokens[t] of a quantized table, dequantized and scaled, if this piece of the table holds it. A thread makes 16 values. → [T, H]
struct Params {
    piece: Piece,
    cols: u32, // H
    scale: f32,
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;  // [T]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, H]

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let run = group.x * THREADS + id.x;
    let local = tokens[group.y] - p.piece.first; // wraps below `first`
    if run < 2u * p.piece.pairs && local < p.piece.count {
        let row = local * p.piece.stride;
        let w = row_weights(row, row + p.piece.tail, run / 2u, run & 1u);
        let column = columns(run / 2u, run & 1u) * 4u;
        for (var j = 0u; j < 4u; j++) {
            for (var k = 0u; k < 4u; k++) {
                let c = column + j * 4u + k;
                if c < p.cols {
                    y[group.y * p.cols + c] = w[j][k] * p.scale;
                }
            }
        }
    }
}
