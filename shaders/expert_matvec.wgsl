// y[s] = x[s] · weight[ids[s]]ᵀ, times the expert's scale, for few slots, s = t·K + k. A workgroup makes MATVEC_ROWS outputs of one slot; LANES threads
// share each row. Order of a sum: that of lib/gemv.wgsl.
// [T, n] or [T, K, n], ids [T, K], weight [E, N, n] → [T, K, N]; this piece of the stack makes its rows (lib/expert.wgsl).
struct Params {
    piece: Piece,
    experts: u32,   // E
    shared_by: u32, // slots that share a row of x: K, or 1
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T or T·K, n / 4]
@group(0) @binding(2) var<storage, read> ids: array<u32>;     // [T·K]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T·K, N]

@compute @workgroup_size(LANES, GROUPS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = group.x * MATVEC_ROWS + id.y * 4u;
    let slot = group.y;
    let expert = held(ids[slot]);
    var mine = vec4<f32>();
    if holds_any(expert, row, 4u) {
        let rows = starts(expert, vec4<u32>(row, row + 1u, row + 2u, row + 3u));
        mine = share(rows, slot / p.shared_by * p.piece.pairs * 8u, id.x);
    }
    let sum = sum_lanes(id, mine);
    if id.x == 0u {
        for (var j = 0u; j < 4u; j++) {
            put(expert, slot, row + j, sum[j]);
        }
    }
}
