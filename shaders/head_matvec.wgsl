// y[t, h] = x[t, h] · weight[h]ᵀ for few positions. A workgroup makes MATVEC_ROWS outputs of a head of one position; LANES threads share each
// row. Order of a sum: that of lib/gemv.wgsl.
// [T, heads·D] or [T, D] × [heads, N, K], K ≤ D → the first N columns of each head of [T, heads·W]; this piece of the stack makes its rows
// (lib/stack.wgsl).
struct Params {
    piece: Piece,
    experts: u32,   // heads
    first: u32,     // the head that this dispatch begins with
    row: u32,       // vec4 from a position of x to the next
    head: u32,      // vec4 from a head of x to the next, 0 where all read one
    width: u32,     // W
    positions: u32, // T
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T, heads, D / 4] or [T, D / 4]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, heads, W]

@compute @workgroup_size(LANES, GROUPS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = group.x * MATVEC_ROWS + id.y * 4u;
    let t = group.y;
    let h = p.first + group.z;
    let head = held(h);
    var mine = vec4<f32>();
    if holds_any(head, row, 4u) {
        let rows = starts(head, vec4<u32>(row, row + 1u, row + 2u, row + 3u));
        mine = share(rows, t * p.row + h * p.head, id.x);
    }
    let sum = sum_lanes(id, mine);
    if id.x == 0u {
        for (var j = 0u; j < 4u; j++) {
            if row + j >= head.first && row + j < head.end {
                y[(t * p.experts + h) * p.width + row + j] = sum[j];
            }
        }
    }
}
