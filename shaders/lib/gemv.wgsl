// Dot products of one activation row with four weight rows: LANES threads share the columns, each takes every LANES-th pair.
// Order of a sum: a thread's four accumulators take the columns in turn, one pair after the other; then the four are added,
// then the threads' sums in a tree in workgroup memory. A term goes through at most 8·⌈pairs / LANES⌉ + 2 + log2(LANES)
// additions. Nothing depends on the subgroup size.
var<workgroup> sums: array<vec4<f32>, LANES * GROUPS>;

fn multiply_add(sum: vec4<f32>, w: mat4x4<f32>, x: mat4x4<f32>) -> vec4<f32> {
    return fma(w[3], x[3], fma(w[2], x[2], fma(w[1], x[1], fma(w[0], x[0], sum))));
}

// This thread's share. `rows`: where each weight row starts. `start`: where the activation row starts, in vec4.
fn share(rows: vec4<u32>, start: u32, lane: u32) -> vec4<f32> {
    var a = vec4<f32>();
    var b = vec4<f32>();
    var c = vec4<f32>();
    var d = vec4<f32>();
    for (var i = lane; i < p.piece.pairs; i += LANES) {
        for (var h = 0u; h < 2u; h++) {
            let at = start + columns(i, h);
            let x4 = mat4x4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
            a = multiply_add(a, row_weights(rows.x, rows.x + p.piece.tail, i, h), x4);
            b = multiply_add(b, row_weights(rows.y, rows.y + p.piece.tail, i, h), x4);
            c = multiply_add(c, row_weights(rows.z, rows.z + p.piece.tail, i, h), x4);
            d = multiply_add(d, row_weights(rows.w, rows.w + p.piece.tail, i, h), x4);
        }
    }
    return vec4<f32>(add_up(a), add_up(b), add_up(c), add_up(d));
}

// The sum of the shares of the threads of group `id.y`, valid in its first thread. Every thread of the workgroup calls it.
fn sum_lanes(id: vec3<u32>, mine: vec4<f32>) -> vec4<f32> {
    let at = id.y * LANES + id.x;
    sums[at] = mine;
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if id.x < step {
            sums[at] += sums[at + step];
        }
    }
    return sums[at];
}
