// y = x · weightᵀ for one position, where subgroups are 8 wide (lib/lanes.wgsl). A subgroup makes 32 outputs.
// [T, K] × [N, K] → [T, N]; this piece of the weight holds rows first to first + count - 1.
struct Params {
    pairs: u32,  // K / 32
    stride: u32, // vec4 a weight row
    tail: u32,   // vec4 from a row's start to its second plane
    rows: u32,   // N
    first: u32,
    count: u32,
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, K / 4]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, N]

const SUBGROUPS: u32 = 4u;

@compute @workgroup_size(8u * SUBGROUPS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let row = (group.x * SUBGROUPS + subgroup) * 32u + lane;
    let t = group.y;
    // Rows past the end repeat the last one and are not written.
    let rows = min(vec4<u32>(row, row + 8u, row + 16u, row + 24u), vec4<u32>(p.count - 1u)) * p.stride;
    let sums = one_position(rows, t * p.pairs * 8u, lane);
    for (var j = 0u; j < 4u; j++) {
        if row + 8u * j < p.count {
            y[t * p.rows + p.first + row + 8u * j] = sums[j];
        }
    }
}
