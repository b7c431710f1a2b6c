// y = x · weightᵀ for many positions, a tile of 32 rows by 32 positions a workgroup.
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

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = group.x * TILE;
    let t = group.y * TILE;
    let load = (id.y * 8u + id.x) / 2u;
    // Rows and positions past the end repeat the last one and are not written.
    let w_row = min(row + load, p.count - 1u) * p.stride;
    let x_row = min(t + load, p.positions - 1u) * p.pairs * 8u;
    let sums = tile_products(w_row, x_row, id);
    for (var j = 0u; j < 4u; j++) {
        for (var k = 0u; k < 4u; k++) {
            let r = row + id.y + 8u * j;
            let position = t + id.x + 8u * k;
            if r < p.count && position < p.positions {
                y[position * p.rows + p.first + r] = sums[j][k];
            }
        }
    }
}
