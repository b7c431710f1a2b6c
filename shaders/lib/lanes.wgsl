// Dot products for software adapters: their subgroups are 8 wide, and a load from a buffer or from workgroup memory costs them one
// step a lane. A lane has four weight rows to itself (lane, lane + 8, + 16, + 24), so nothing is dequantized twice; activations are
// loaded once for the whole subgroup, an eighth by each lane, and handed round by broadcast. Weights and activations are in textures
// (lib/weight_texture.wgsl). There is no workgroup memory and no barrier.
// The host uses these kernels only where the adapter says that subgroups are 8 wide.
// Order of a sum: the columns of a pair, then the pairs' sums, each first to last. A term goes through at most 10 + pairs
// additions.
@group(0) @binding(1) var x: texture_2d<u32>; // [rows, K / 4] of vec4<f32>, TEXELS of them a row

// vec4 number `at` of the activations.
fn activations(at: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(textureLoad(x, texel(at), 0));
}

// The rows of a lane whose first one is `row`.
fn every_eighth(row: u32) -> vec4<u32> {
    return vec4<u32>(row, row + 8u, row + 16u, row + 24u);
}

// What the first four lanes of the subgroup hold, and the last four: of a pair, the columns of run 0 and of run 1.
fn first_run(mine: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        subgroupBroadcast(mine, 0u),
        subgroupBroadcast(mine, 1u),
        subgroupBroadcast(mine, 2u),
        subgroupBroadcast(mine, 3u),
    );
}
fn second_run(mine: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        subgroupBroadcast(mine, 4u),
        subgroupBroadcast(mine, 5u),
        subgroupBroadcast(mine, 6u),
        subgroupBroadcast(mine, 7u),
    );
}

// `sum` and the products of a run of a weight row with the same run of four positions, four columns after four.
fn add_run(sum: vec4<f32>, w: mat4x4<f32>, x0: mat4x4<f32>, x1: mat4x4<f32>, x2: mat4x4<f32>, x3: mat4x4<f32>) -> vec4<f32> {
    let a = sum + products(w[0], x0[0], x1[0], x2[0], x3[0]);
    let b = a + products(w[1], x0[1], x1[1], x2[1], x3[1]);
    let c = b + products(w[2], x0[2], x1[2], x2[2], x3[2]);
    return c + products(w[3], x0[3], x1[3], x2[3], x3[3]);
}

// Four positions: column j is weight row rows[j], its component k the activation row that starts at xs[k], in vec4.
fn four_positions(rows: vec4<u32>, xs: vec4<u32>, lane: u32) -> mat4x4<f32> {
    let tails = rows + vec4<u32>(p.piece.tail);
    var sum = mat4x4<f32>();
    for (var n = 0u; n < p.piece.pairs / PAIRS; n++) {
        let sa = block(rows.x, tails.x, n);
        let sb = block(rows.y, tails.y, n);
        let sc = block(rows.z, tails.z, n);
        let sd = block(rows.w, tails.w, n);
        for (var pair = 0u; pair < PAIRS; pair++) {
            let at = columns(n * PAIRS + pair, (lane >> 2u) & 1u) + (lane & 3u);
            let m = mat4x4<f32>(activations(xs.x + at), activations(xs.y + at), activations(xs.z + at), activations(xs.w + at));
            var x0 = first_run(m[0]);
            var x1 = first_run(m[1]);
            var x2 = first_run(m[2]);
            var x3 = first_run(m[3]);
            var a = add_run(vec4<f32>(), weights(sa, pair, 0u), x0, x1, x2, x3);
            var b = add_run(vec4<f32>(), weights(sb, pair, 0u), x0, x1, x2, x3);
            var c = add_run(vec4<f32>(), weights(sc, pair, 0u), x0, x1, x2, x3);
            var d = add_run(vec4<f32>(), weights(sd, pair, 0u), x0, x1, x2, x3);
            x0 = second_run(m[0]);
            x1 = second_run(m[1]);
            x2 = second_run(m[2]);
            x3 = second_run(m[3]);
            a = add_run(a, weights(sa, pair, 1u), x0, x1, x2, x3);
            b = add_run(b, weights(sb, pair, 1u), x0, x1, x2, x3);
            c = add_run(c, weights(sc, pair, 1u), x0, x1, x2, x3);
            d = add_run(d, weights(sd, pair, 1u), x0, x1, x2, x3);
            sum = sum + mat4x4<f32>(a, b, c, d);
        }
    }
    return sum;
}

// One position, whose activation row starts at vec4 `start`: component j is weight row rows[j].
fn one_position(rows: vec4<u32>, start: u32, lane: u32) -> vec4<f32> {
    let tails = rows + vec4<u32>(p.piece.tail);
    var sum = mat4x4<f32>();
    for (var n = 0u; n < p.piece.pairs / PAIRS; n++) {
        let sa = block(rows.x, tails.x, n);
        let sb = block(rows.y, tails.y, n);
        let sc = block(rows.z, tails.z, n);
        let sd = block(rows.w, tails.w, n);
        for (var pair = 0u; pair < PAIRS; pair++) {
            let mine = activations(start + columns(n * PAIRS + pair, (lane >> 2u) & 1u) + (lane & 3u));
            let x0 = first_run(mine);
            let x1 = second_run(mine);
            let a = run_of_columns(weights(sa, pair, 0u), x0) + run_of_columns(weights(sa, pair, 1u), x1);
            let b = run_of_columns(weights(sb, pair, 0u), x0) + run_of_columns(weights(sb, pair, 1u), x1);
            let c = run_of_columns(weights(sc, pair, 0u), x0) + run_of_columns(weights(sc, pair, 1u), x1);
            let d = run_of_columns(weights(sd, pair, 0u), x0) + run_of_columns(weights(sd, pair, 1u), x1);
            sum = sum + mat4x4<f32>(a, b, c, d);
        }
    }
    return vec4<f32>(add_up(sum[0]), add_up(sum[1]), add_up(sum[2]), add_up(sum[3]));
}

fn run_of_columns(w: mat4x4<f32>, x4: mat4x4<f32>) -> vec4<f32> {
    return fma(w[3], x4[3], fma(w[2], x4[2], fma(w[1], x4[1], w[0] * x4[0])));
}
