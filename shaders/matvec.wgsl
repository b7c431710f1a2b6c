// y = x · weightᵀ for few positions. A workgroup makes 16 outputs of one position; LANES threads share each row.
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

@compute @workgroup_size(LANES, GROUPS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = (group.x * GROUPS + id.y) * 4u;
    let t = group.y;
    // Rows past the end repeat the last one and are not written.
    let rows = min(vec4<u32>(row, row + 1u, row + 2u, row + 3u), vec4<u32>(p.count - 1u)) * p.stride;
    let sum = sum_lanes(id, share(rows, t * p.pairs * 8u, id.x));
    if id.x == 0u {
        for (var j = 0u; j < min(4u, p.count - min(row, p.count)); j++) {
            y[t * p.rows + p.first + row + j] = sum[j];
        }
    }
}
