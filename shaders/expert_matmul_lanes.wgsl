// y[s] = x[s] · weight[ids[s]]ᵀ for many slots, s = t·K + k, over tiles of slots that share an expert (expert_plan), where
// subgroups are 8 wide (lib/lanes.wgsl). A subgroup makes 32 outputs of 4 slots.
// [T, n] or [T, K, n], weight [E, N, n] → [T, K, N]. This piece of the stack holds its rows first to first + count - 1,
// counted through all experts.
struct Params {
    pairs: u32,   // n / 32
    stride: u32,  // vec4 a weight row
    tail: u32,    // vec4 from a row's start to its second plane
    rows: u32,    // N
    first: u32,
    count: u32,
    experts: u32, // E
    shared_by: u32, // slots that share a row of x: K, or 1
    slots: u32,   // T·K
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T or T·K, n / 4]
@group(0) @binding(2) var<storage, read> plan: array<u32>;    // see expert_plan
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T·K, N]

const SUBGROUPS: u32 = 8u;

@compute @workgroup_size(8u * SUBGROUPS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let order = p.experts + 1u;
    let tile = order + p.slots + 3u * group.y;
    let expert = plan[tile];
    let place = order + plan[tile + 1u];
    let length = plan[tile + 2u];
    let n = subgroup * 4u;
    let row = group.x * 32u + lane;
    let known = expert < p.experts;
    // The rows of this expert that this piece holds: from_row to end_row - 1, counted within the expert.
    let base = select(0u, expert, known) * p.rows;
    let from_row = max(base, p.first) - base;
    let end_row = min(max(min(base + p.rows, p.first + p.count), base) - base, p.rows);
    let here = known && n < length && group.x * 32u < end_row && group.x * 32u + 32u > from_row;
    if n < length {
        let places = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(length - 1u)) + vec4<u32>(place);
        let slots = vec4<u32>(plan[places.x], plan[places.y], plan[places.z], plan[places.w]);
        var sums = mat4x4<f32>();
        if here {
            let near = clamp(vec4<u32>(row, row + 8u, row + 16u, row + 24u), vec4<u32>(from_row), vec4<u32>(end_row - 1u));
            let rows = (near + vec4<u32>(base) - vec4<u32>(p.first)) * p.stride;
            sums = four_positions(rows, slots / p.shared_by * p.pairs * 8u, lane);
        }
        for (var j = 0u; j < 4u; j++) {
            let r = row + 8u * j;
            for (var k = 0u; k < 4u; k++) {
                if n + k < length {
                    if here && r >= from_row && r < end_row {
                        y[slots[k] * p.rows + r] = sums[j][k];
                    }
                    // An id that names no expert gives NaN, never another expert's answer.
                    if !known && r < p.rows {
                        y[slots[k] * p.rows + r] = make_nan(p.first & 0u);
                    }
                }
            }
        }
    }
}
