// y[s] = x[s] · weight[ids[s]]ᵀ, times the expert's scale, for many slots, s = t·K + k, where subgroups are 8 wide. A workgroup makes TILE rows by up to TILE
// slots that share an expert (expert_plan), a subgroup the same rows of 4 slots. Order of a sum: that of lib/lanes.wgsl.
// [T, n] or [T, K, n], weight [E, N, n] → [T, K, N]; this piece of the stack makes its rows (lib/expert.wgsl).
struct Params {
    piece: Piece,
    experts: u32,   // E
    shared_by: u32, // slots that share a row of x: K, or 1
    slots: u32,     // T·K
    first_tile: u32, // where in the plan this dispatch begins
}
var<immediate> p: Params;
@group(0) @binding(2) var<storage, read> plan: array<u32>;    // see expert_plan
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T·K, N]

@compute @workgroup_size(WIDTH * TILE / 4)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let order = p.experts + 1u;
    let tile = order + p.slots + 3u * (p.first_tile + group.y);
    let expert = held(plan[tile]);
    let place = order + plan[tile + 1u];
    let length = plan[tile + 2u];
    let n = subgroup * 4u;
    let row = group.x * TILE;
    if n < length {
        let places = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(length - 1u)) + vec4<u32>(place);
        let slots = vec4<u32>(plan[places.x], plan[places.y], plan[places.z], plan[places.w]);
        var sums = mat4x4<f32>();
        if holds_any(expert, row, TILE) {
            let rows = starts(expert, every_eighth(row + lane));
            sums = four_positions(rows, slots / p.shared_by * p.piece.pairs * 8u, lane);
        }
        for (var j = 0u; j < 4u; j++) {
            for (var k = 0u; k < 4u && n + k < length; k++) {
                put(expert, slots[k], row + lane + 8u * j, sums[j][k]);
            }
        }
    }
}
