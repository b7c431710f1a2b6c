// y[t, h] = x[t, h] · weight[h]ᵀ for one position, where subgroups are 8 wide. A subgroup makes SUBGROUP_ROWS outputs of a head.
// Order of a sum: that of lib/lanes.wgsl.
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
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, heads, W]

@compute @workgroup_size(WIDTH * SUBGROUPS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let first = group.x * LANES_MATVEC_ROWS + subgroup * SUBGROUP_ROWS;
    let t = group.y;
    let h = p.first + group.z;
    let head = held(h);
    if holds_any(head, first, SUBGROUP_ROWS) {
        let sums = one_position(starts(head, every_eighth(first + lane)), t * p.row + h * p.head, lane);
        for (var j = 0u; j < 4u; j++) {
            let row = first + lane + 8u * j;
            if row >= head.first && row < head.end {
                y[(t * p.experts + h) * p.width + row] = sums[j];
            }
        }
    }
}
