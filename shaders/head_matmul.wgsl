// y[t, h] = x[t, h] · weight[h]ᵀ for many positions. A workgroup makes a tile, TILE rows of a head by TILE positions.
// Order of a sum: that of lib/tile.wgsl.
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

@compute @workgroup_size(SIDE, SIDE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = group.x * TILE;
    let t = group.y * TILE;
    let h = p.first + group.z;
    let head = held(h);
    var sums = mat4x4<f32>();
    if holds_any(head, row, TILE) {
        let load = (id.y * SIDE + id.x) / 2u;
        // Positions past the end repeat the last one and are not written.
        let w_row = starts(head, vec4<u32>(row + load)).x;
        sums = tile_products(w_row, min(t + load, p.positions - 1u) * p.row + h * p.head, id);
    }
    for (var j = 0u; j < 4u; j++) {
        for (var k = 0u; k < 4u; k++) {
            let r = row + id.y + SIDE * j;
            let position = t + id.x + SIDE * k;
            if r >= head.first && r < head.end && position < p.positions {
                y[(position * p.experts + h) * p.width + r] = sums[j][k];
            }
        }
    }
}
