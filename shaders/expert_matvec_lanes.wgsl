// y[s] = x[s] · weight[ids[s]]ᵀ, times the expert's scale, for few slots, s = t·K + k, where subgroups are 8 wide. A subgroup makes SUBGROUP_ROWS outputs of
// one slot. Order of a sum: that of lib/lanes.wgsl.
// [T, n] or [T, K, n], ids [T, K], weight [E, N, n] → [T, K, N]; this piece of the stack makes its rows (lib/expert.wgsl).
struct Params {
    piece: Piece,
    experts: u32,   // E
    shared_by: u32, // slots that share a row of x: K, or 1
}
var<immediate> p: Params;
@group(0) @binding(2) var<storage, read> ids: array<u32>;     // [T·K]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T·K, N]

@compute @workgroup_size(WIDTH * SUBGROUPS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let first = group.x * LANES_MATVEC_ROWS + subgroup * SUBGROUP_ROWS;
    let slot = group.y;
    let expert = held(ids[slot]);
    var sums = vec4<f32>();
    if holds_any(expert, first, SUBGROUP_ROWS) {
        let rows = starts(expert, every_eighth(first + lane));
        sums = one_position(rows, slot / p.shared_by * p.piece.pairs * 8u, lane);
    }
    for (var j = 0u; j < 4u; j++) {
        put(expert, slot, first + lane + 8u * j, sums[j]);
    }
}
