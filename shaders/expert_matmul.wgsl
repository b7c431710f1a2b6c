// y[s] = x[s] · weight[ids[s]]ᵀ, times the expert's scale, for many slots, s = t·K + k. A workgroup makes a tile, TILE rows by up to TILE slots that share an
// expert (expert_plan). Order of a sum: that of lib/tile.wgsl.
// [T, n] or [T, K, n], weight [E, N, n] → [T, K, N]; this piece of the stack makes its rows (lib/expert.wgsl).
struct Params {
    piece: Piece,
    experts: u32,   // E
    shared_by: u32, // slots that share a row of x: K, or 1
    slots: u32,     // T·K
    first_tile: u32, // where in the plan this dispatch begins
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T or T·K, n / 4]
@group(0) @binding(2) var<storage, read> plan: array<u32>;    // see expert_plan
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T·K, N]

@compute @workgroup_size(SIDE, SIDE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let order = p.experts + 1u;
    let tile = order + p.slots + 3u * (p.first_tile + group.y);
    let expert = held(plan[tile]);
    let place = order + plan[tile + 1u];
    let length = plan[tile + 2u];
    let row = group.x * TILE;
    var sums = mat4x4<f32>();
    if length > 0u && holds_any(expert, row, TILE) {
        let load = (id.y * SIDE + id.x) / 2u;
        let w_row = starts(expert, vec4<u32>(row + load)).x;
        let slot = plan[place + min(load, length - 1u)];
        sums = tile_products(w_row, slot / p.shared_by * p.piece.pairs * 8u, id);
    }
    for (var j = 0u; j < 4u; j++) {
        for (var k = 0u; k < 4u; k++) {
            let n = id.x + SIDE * k;
            if n < length {
                put(expert, plan[place + n], row + id.y + SIDE * j, sums[j][k]);
            }
        }
    }
}
