// y = x · weightᵀ, times the weight's scale, for one position, where subgroups are 8 wide. A subgroup makes SUBGROUP_ROWS outputs.
// Order of a sum: that of lib/lanes.wgsl. [T, K] × [N, K] → [T, N]; this piece of the weight makes its rows of the output.
struct Params {
    piece: Piece,
}
var<immediate> p: Params;
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, N]

@compute @workgroup_size(WIDTH * SUBGROUPS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let row = group.x * LANES_MATVEC_ROWS + subgroup * SUBGROUP_ROWS + lane;
    let t = group.y;
    // Rows past the end repeat the last one and are not written.
    let rows = min(every_eighth(row), vec4<u32>(p.piece.count - 1u)) * p.piece.stride;
    let sums = one_position(rows, t * p.piece.pairs * 8u, lane) * scale_of(0u);
    for (var j = 0u; j < 4u; j++) {
        if row + 8u * j < p.piece.count {
            y[t * p.piece.rows + p.piece.first + row + 8u * j] = sums[j];
        }
    }
}
