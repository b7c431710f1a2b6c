// y[s] = x[s] · weight[ids[s]]ᵀ for few slots, s = t·K + k, where subgroups are 8 wide (lib/lanes.wgsl). A subgroup makes 32
// outputs of one slot. [T, n] or [T, K, n], ids [T, K], weight [E, N, n] → [T, K, N]. This piece of the stack holds its rows
// first to first + count - 1, counted through all experts.
struct Params {
    pairs: u32,   // n / 32
    stride: u32,  // vec4 a weight row
    tail: u32,    // vec4 from a row's start to its second plane
    rows: u32,    // N
    first: u32,
    count: u32,
    experts: u32, // E
    shared_by: u32, // slots that share a row of x: K, or 1
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T or T·K, n / 4]
@group(0) @binding(2) var<storage, read> ids: array<u32>;     // [T·K]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T·K, N]

const SUBGROUPS: u32 = 4u;

@compute @workgroup_size(8u * SUBGROUPS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let tile = (group.x * SUBGROUPS + subgroup) * 32u;
    let row = tile + lane;
    let slot = group.y;
    let expert = ids[slot];
    // An id that names no expert gives NaN, never another expert's answer.
    let known = expert < p.experts;
    // The rows of this expert that this piece holds: from_row to end_row - 1, counted within the expert.
    let base = select(0u, expert, known) * p.rows;
    let from_row = max(base, p.first) - base;
    let end_row = min(max(min(base + p.rows, p.first + p.count), base) - base, p.rows);
    let here = known && tile < end_row && tile + 32u > from_row;
    var sums = vec4<f32>();
    if here {
        let near = clamp(vec4<u32>(row, row + 8u, row + 16u, row + 24u), vec4<u32>(from_row), vec4<u32>(end_row - 1u));
        let rows = (near + vec4<u32>(base) - vec4<u32>(p.first)) * p.stride;
        sums = one_position(rows, slot / p.shared_by * p.pairs * 8u, lane);
    }
    for (var j = 0u; j < 4u; j++) {
        let r = row + 8u * j;
        if here && r >= from_row && r < end_row {
            y[slot * p.rows + r] = sums[j];
        }
        if !known && r < p.rows {
            y[slot * p.rows + r] = make_nan(p.first & 0u);
        }
    }
}
