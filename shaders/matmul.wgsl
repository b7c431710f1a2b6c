// y = x · weightᵀ, times the weight's scale, for many positions. A workgroup makes a tile, TILE rows by TILE positions.
// Order of a sum: that of lib/tile.wgsl. [T, K] × [N, K] → [T, N]; this piece of the weight makes its rows of the output.
struct Params {
    piece: Piece,
    positions: u32, // T
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, N]

@compute @workgroup_size(SIDE, SIDE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = group.x * TILE;
    let t = group.y * TILE;
    let load = (id.y * SIDE + id.x) / 2u;
    // Rows and positions past the end repeat the last one and are not written.
    let w_row = min(row + load, p.piece.count - 1u) * p.piece.stride;
    let x_row = min(t + load, p.positions - 1u) * p.piece.pairs * 8u;
    let sums = tile_products(w_row, x_row, id) * scale_of(0u);
    for (var j = 0u; j < 4u; j++) {
        for (var k = 0u; k < 4u; k++) {
            let r = row + id.y + SIDE * j;
            let position = t + id.x + SIDE * k;
            if r < p.piece.count && position < p.positions {
                y[position * p.piece.rows + p.piece.first + r] = sums[j][k];
            }
        }
    }
}
