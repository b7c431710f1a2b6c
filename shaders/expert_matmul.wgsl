// y[s] = x[s] · weight[ids[s]]ᵀ for many slots, s = t·K + k, over tiles of slots that share an expert (expert_plan).
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

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let order = p.experts + 1u;
    let tile = order + p.slots + 3u * group.y;
    let expert = plan[tile];
    let place = plan[tile + 1u];
    let length = plan[tile + 2u];
    let row = group.x * TILE;
    let known = expert < p.experts;
    // The rows of this expert that this piece holds: from_row to end_row - 1, counted within the expert.
    let base = select(0u, expert, known) * p.rows;
    let from_row = max(base, p.first) - base;
    let end_row = min(max(min(base + p.rows, p.first + p.count), base) - base, p.rows);
    let here = known && length > 0u && row < end_row && row + TILE > from_row;
    var sums = mat4x4<f32>();
    if here {
        let load = (id.y * 8u + id.x) / 2u;
        let w_row = (clamp(row + load, from_row, end_row - 1u) + base - p.first) * p.stride;
        let slot = plan[order + place + min(load, length - 1u)];
        sums = tile_products(w_row, slot / p.shared_by * p.pairs * 8u, id);
    }
    for (var j = 0u; j < 4u; j++) {
        for (var k = 0u; k < 4u; k++) {
            let r = row + id.y + 8u * j;
            let n = id.x + 8u * k;
            if n < length {
                let slot = plan[order + place + n];
                if here && r >= from_row && r < end_row {
                    y[slot * p.rows + r] = sums[j][k];
                }
                // An id that names no expert gives NaN, never another expert's answer.
                if !known && r < p.rows {
                    y[slot * p.rows + r] = make_nan(p.first & 0u);
                }
            }
        }
    }
}
