// y[t, h] = x[t, h] · weight[h]ᵀ for several positions, where subgroups are 8 wide. A workgroup makes TILE rows of a head by TILE positions,
// a subgroup the same rows of 4 positions. Order of a sum: that of lib/lanes.wgsl.
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

@compute @workgroup_size(WIDTH * TILE / 4)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let first = group.x * TILE;
    let t = group.y * TILE + subgroup * 4u;
    let h = p.first + group.z;
    let head = held(h);
    if t < p.positions && holds_any(head, first, TILE) {
        // Positions past the end repeat the last one and are not written.
        let ts = min(vec4<u32>(t, t + 1u, t + 2u, t + 3u), vec4<u32>(p.positions - 1u));
        let sums = four_positions(starts(head, every_eighth(first + lane)), ts * p.row + vec4<u32>(h * p.head), lane);
        for (var j = 0u; j < 4u; j++) {
            for (var k = 0u; k < 4u; k++) {
                let row = first + lane + 8u * j;
                if row >= head.first && row < head.end && t + k < p.positions {
                    y[((t + k) * p.experts + h) * p.width + row] = sums[j][k];
                }
            }
        }
    }
}
