// y = x · weightᵀ for several positions, where subgroups are 8 wide (lib/lanes.wgsl). A subgroup makes 32 outputs of 4 positions.
// [T, K] × [N, K] → [T, N]; this piece of the weight holds rows first to first + count - 1.
struct Params {
    pairs: u32,  // K / 32
    stride: u32, // vec4 a weight row
    tail: u32,   // vec4 from a row's start to its second plane
    rows: u32,   // N
    first: u32,
    count: u32,
    positions: u32, // T
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, N]

const SUBGROUPS: u32 = 8u;

@compute @workgroup_size(8u * SUBGROUPS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let row = group.x * 32u + lane;
    let t = (group.y * SUBGROUPS + subgroup) * 4u;
    if t < p.positions {
        // Rows and positions past the end repeat the last one and are not written.
        let rows = min(vec4<u32>(row, row + 8u, row + 16u, row + 24u), vec4<u32>(p.count - 1u)) * p.stride;
        let xs = min(vec4<u32>(t, t + 1u, t + 2u, t + 3u), vec4<u32>(p.positions - 1u)) * p.pairs * 8u;
        let sums = four_positions(rows, xs, lane);
        for (var j = 0u; j < 4u; j++) {
            for (var k = 0u; k < 4u; k++) {
                if row + 8u * j < p.count && t + k < p.positions {
                    y[(t + k) * p.rows + p.first + row + 8u * j] = sums[j][k];
                }
            }
        }
    }
}
