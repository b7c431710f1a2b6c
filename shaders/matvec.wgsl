// y = x · weightᵀ, times the weight's scale, for few positions. A workgroup makes MATVEC_ROWS outputs of one position; LANES threads share each row.
// Order of a sum: that of lib/gemv.wgsl. [T, K] × [N, K] → [T, N]; this piece of the weight makes its rows of the output.
struct Params {
    piece: Piece,
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, N]

@compute @workgroup_size(LANES, GROUPS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = group.x * MATVEC_ROWS + id.y * 4u;
    let t = group.y;
    // Rows past the end repeat the last one and are not written.
    let rows = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(p.piece.count - 1u)) * p.piece.stride;
    let sum = sum_lanes(id, share(rows, t * p.piece.pairs * 8u, id.x)) * scale_of(0u);
    if id.x == 0u {
        for (var j = 0u; j < min(4u, p.piece.count - min(row, p.piece.count)); j++) {
            y[t * p.piece.rows + p.piece.first + row + j] = sum[j];
        }
    }
}
