// A tile of outputs: TILE weight rows by TILE activation rows, SIDE × SIDE threads, 4 × 4 outputs a thread, one pair (32
// columns) at a time through workgroup memory. Order of a sum: the columns of a pair four at a time by dot, first to last;
// then the pairs' sums, first to last.
var<workgroup> tile_w: array<vec4<f32>, TILE * PITCH>;
var<workgroup> tile_x: array<vec4<f32>, TILE * PITCH>;

// The outputs of thread `id`: column j is weight row id.y + SIDE·j, its component k activation row id.x + SIDE·k of the tile.
// `w_row`: where the weight row that this thread loads starts; `x_row`: where its activation row starts, in vec4.
// A thread loads row (id.y·SIDE + id.x) / 2 of each tile, and of a pair the run (id.x & 1).
fn tile_products(w_row: u32, x_row: u32, id: vec3<u32>) -> mat4x4<f32> {
    let h = id.x & 1u;
    let store = (id.y * SIDE + id.x) / 2u * PITCH + h * 4u;
    var sum = mat4x4<f32>();
    for (var i = 0u; i < p.piece.pairs; i++) {
        let w = row_weights(w_row, w_row + p.piece.tail, i, h);
        let at = x_row + columns(i, h);
        workgroupBarrier();
        tile_w[store] = w[0];
        tile_w[store + 1u] = w[1];
        tile_w[store + 2u] = w[2];
        tile_w[store + 3u] = w[3];
        tile_x[store] = x[at];
        tile_x[store + 1u] = x[at + 1u];
        tile_x[store + 2u] = x[at + 2u];
        tile_x[store + 3u] = x[at + 3u];
        workgroupBarrier();
        var a = vec4<f32>();
        var b = vec4<f32>();
        var c = vec4<f32>();
        var d = vec4<f32>();
        for (var k = 0u; k < 8u; k++) {
            let x0 = tile_x[id.x * PITCH + k];
            let x1 = tile_x[(id.x + SIDE) * PITCH + k];
            let x2 = tile_x[(id.x + 2u * SIDE) * PITCH + k];
            let x3 = tile_x[(id.x + 3u * SIDE) * PITCH + k];
            a += products(tile_w[id.y * PITCH + k], x0, x1, x2, x3);
            b += products(tile_w[(id.y + SIDE) * PITCH + k], x0, x1, x2, x3);
            c += products(tile_w[(id.y + 2u * SIDE) * PITCH + k], x0, x1, x2, x3);
            d += products(tile_w[(id.y + 3u * SIDE) * PITCH + k], x0, x1, x2, x3);
        }
        sum = sum + mat4x4<f32>(a, b, c, d);
    }
    return sum;
}
