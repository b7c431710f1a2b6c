// y = x · weightᵀ, times the weight's scale, for several positions, where subgroups are 8 wide. A workgroup makes TILE rows by TILE positions, a subgroup the
// same rows of 4 positions. Order of a sum: that of lib/lanes.wgsl.
// [T, K] × [N, K] → [T, N]; this piece of the weight makes its rows of the output.
struct Params {
    piece: Piece,
    positions: u32, // T
}
var<immediate> p: Params;
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, N]

@compute @workgroup_size(WIDTH * TILE / 4)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let row = group.x * TILE + lane;
    let t = group.y * TILE + subgroup * 4u;
    if t < p.positions {
        // Rows and positions past the end repeat the last one and are not written.
        let rows = min(every_eighth(row), vec4<u32>(p.piece.count - 1u)) * p.piece.stride;
        let xs = min(vec4<u32>(t, t + 1u, t + 2u, t + 3u), vec4<u32>(p.positions - 1u)) * p.piece.pairs * 8u;
        let sums = four_positions(rows, xs, lane) * scale_of(0u);
        for (var j = 0u; j < 4u; j++) {
            for (var k = 0u; k < 4u; k++) {
                if row + 8u * j < p.piece.count && t + k < p.positions {
                    y[(t + k) * p.piece.rows + p.piece.first + row + 8u * j] = sums[j][k];
                }
            }
        }
    }
}
