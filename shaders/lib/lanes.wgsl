// Dot products for adapters whose subgroups are 8 wide and whose loads cost one step a lane: software adapters. A lane has four
// weight rows to itself (lane, lane + 8, + 16, + 24), so nothing is dequantized twice; activations are loaded once for the
// whole subgroup, an eighth by each lane, and handed round by broadcast. No workgroup memory, no barrier.
// The host uses these kernels only where the adapter says that subgroups are 8 wide.
// Order of a sum: the columns of a pair, then the pairs' sums, each first to last. A term goes through at most 10 + pairs
// additions.

// The products of a weight row's four columns with those of four positions.
fn products(w: vec4<f32>, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot(w, x0), dot(w, x1), dot(w, x2), dot(w, x3));
}

// Four positions: column j is weight row rows[j], its component k the activation row that starts at xs[k], in vec4.
fn four_positions(rows: vec4<u32>, xs: vec4<u32>, lane: u32) -> mat4x4<f32> {
    let tails = rows + vec4<u32>(p.tail);
    var sum = mat4x4<f32>();
    for (var n = 0u; n < p.pairs / PAIRS; n++) {
        let sa = block(rows.x, tails.x, n);
        let sb = block(rows.y, tails.y, n);
        let sc = block(rows.z, tails.z, n);
        let sd = block(rows.w, tails.w, n);
        for (var pair = 0u; pair < PAIRS; pair++) {
            let at = columns(n * PAIRS + pair, (lane >> 2u) & 1u) + (lane & 3u);
            let m0 = x[xs.x + at];
            let m1 = x[xs.y + at];
            let m2 = x[xs.z + at];
            let m3 = x[xs.w + at];
            var a = vec4<f32>();
            var b = vec4<f32>();
            var c = vec4<f32>();
            var d = vec4<f32>();
            {
                let wa = weights(sa, pair, 0u);
                let wb = weights(sb, pair, 0u);
                let wc = weights(sc, pair, 0u);
                let wd = weights(sd, pair, 0u);
                var x0 = subgroupBroadcast(m0, 0u);
                var x1 = subgroupBroadcast(m1, 0u);
                var x2 = subgroupBroadcast(m2, 0u);
                var x3 = subgroupBroadcast(m3, 0u);
                a += products(wa[0], x0, x1, x2, x3);
                b += products(wb[0], x0, x1, x2, x3);
                c += products(wc[0], x0, x1, x2, x3);
                d += products(wd[0], x0, x1, x2, x3);
                x0 = subgroupBroadcast(m0, 1u);
                x1 = subgroupBroadcast(m1, 1u);
                x2 = subgroupBroadcast(m2, 1u);
                x3 = subgroupBroadcast(m3, 1u);
                a += products(wa[1], x0, x1, x2, x3);
                b += products(wb[1], x0, x1, x2, x3);
                c += products(wc[1], x0, x1, x2, x3);
                d += products(wd[1], x0, x1, x2, x3);
                x0 = subgroupBroadcast(m0, 2u);
                x1 = subgroupBroadcast(m1, 2u);
                x2 = subgroupBroadcast(m2, 2u);
                x3 = subgroupBroadcast(m3, 2u);
                a += products(wa[2], x0, x1, x2, x3);
                b += products(wb[2], x0, x1, x2, x3);
                c += products(wc[2], x0, x1, x2, x3);
                d += products(wd[2], x0, x1, x2, x3);
                x0 = subgroupBroadcast(m0, 3u);
                x1 = subgroupBroadcast(m1, 3u);
                x2 = subgroupBroadcast(m2, 3u);
                x3 = subgroupBroadcast(m3, 3u);
                a += products(wa[3], x0, x1, x2, x3);
                b += products(wb[3], x0, x1, x2, x3);
                c += products(wc[3], x0, x1, x2, x3);
                d += products(wd[3], x0, x1, x2, x3);
            }
            {
                let wa = weights(sa, pair, 1u);
                let wb = weights(sb, pair, 1u);
                let wc = weights(sc, pair, 1u);
                let wd = weights(sd, pair, 1u);
                var x0 = subgroupBroadcast(m0, 4u);
                var x1 = subgroupBroadcast(m1, 4u);
                var x2 = subgroupBroadcast(m2, 4u);
                var x3 = subgroupBroadcast(m3, 4u);
                a += products(wa[0], x0, x1, x2, x3);
                b += products(wb[0], x0, x1, x2, x3);
                c += products(wc[0], x0, x1, x2, x3);
                d += products(wd[0], x0, x1, x2, x3);
                x0 = subgroupBroadcast(m0, 5u);
                x1 = subgroupBroadcast(m1, 5u);
                x2 = subgroupBroadcast(m2, 5u);
                x3 = subgroupBroadcast(m3, 5u);
                a += products(wa[1], x0, x1, x2, x3);
                b += products(wb[1], x0, x1, x2, x3);
                c += products(wc[1], x0, x1, x2, x3);
                d += products(wd[1], x0, x1, x2, x3);
                x0 = subgroupBroadcast(m0, 6u);
                x1 = subgroupBroadcast(m1, 6u);
                x2 = subgroupBroadcast(m2, 6u);
                x3 = subgroupBroadcast(m3, 6u);
                a += products(wa[2], x0, x1, x2, x3);
                b += products(wb[2], x0, x1, x2, x3);
                c += products(wc[2], x0, x1, x2, x3);
                d += products(wd[2], x0, x1, x2, x3);
                x0 = subgroupBroadcast(m0, 7u);
                x1 = subgroupBroadcast(m1, 7u);
                x2 = subgroupBroadcast(m2, 7u);
                x3 = subgroupBroadcast(m3, 7u);
                a += products(wa[3], x0, x1, x2, x3);
                b += products(wb[3], x0, x1, x2, x3);
                c += products(wc[3], x0, x1, x2, x3);
                d += products(wd[3], x0, x1, x2, x3);
            }
            sum = sum + mat4x4<f32>(a, b, c, d);
        }
    }
    return sum;
}

// One position, whose activation row starts at vec4 `start`: component j is weight row rows[j].
fn one_position(rows: vec4<u32>, start: u32, lane: u32) -> vec4<f32> {
    let tails = rows + vec4<u32>(p.tail);
    var sum = mat4x4<f32>();
    for (var n = 0u; n < p.pairs / PAIRS; n++) {
        let sa = block(rows.x, tails.x, n);
        let sb = block(rows.y, tails.y, n);
        let sc = block(rows.z, tails.z, n);
        let sd = block(rows.w, tails.w, n);
        for (var pair = 0u; pair < PAIRS; pair++) {
            let mine = x[start + columns(n * PAIRS + pair, (lane >> 2u) & 1u) + (lane & 3u)];
            let x0 = mat4x4<f32>(
                subgroupBroadcast(mine, 0u),
                subgroupBroadcast(mine, 1u),
                subgroupBroadcast(mine, 2u),
                subgroupBroadcast(mine, 3u),
            );
            let x1 = mat4x4<f32>(
                subgroupBroadcast(mine, 4u),
                subgroupBroadcast(mine, 5u),
                subgroupBroadcast(mine, 6u),
                subgroupBroadcast(mine, 7u),
            );
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

fn add_up(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}
