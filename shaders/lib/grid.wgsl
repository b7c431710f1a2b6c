// Points of a grid, which the IQ types refer to by number. The codes of all points of the type's grid stand behind the rows of the piece, two
// to a word: a value is its rank among the few levels of the grid, two bits of a code each for eight values, four bits each for four, the first
// value lowest. A number is masked to its bits, and the grid has a point for each, so nothing is read that is not there.

// The code of point n.
fn grid_code(n: u32) -> u32 {
    let word = stored(p.piece.count * p.piece.stride + (n >> 3u))[(n >> 1u) & 3u];
    return (word >> ((n & 1u) * 16u)) & 0xffffu;
}

// The first four ranks of two bits.
fn two_bits(code: u32) -> vec4<u32> {
    return (vec4<u32>(code) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(3u);
}

// The four ranks of four bits.
fn four_bits(code: u32) -> vec4<u32> {
    return (vec4<u32>(code) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
}

// The first four values of a point of IQ2's grids, whose levels are 8, 25 and 43.
fn iq2_values(code: u32) -> vec4<f32> {
    let rank = two_bits(code);
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(8u) + vec4<u32>(17u) * rank + (rank >> vec4<u32>(1u))));
}

// The first four values of a point of IQ1's grid, whose levels are -1, 0 and 1.
fn iq1_values(code: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(two_bits(code))) - vec4<f32>(1.0);
}

// The values, negated where a bit of the lowest four is set.
fn with_signs(values: vec4<f32>, signs: u32) -> vec4<f32> {
    return select(values, -values, (vec4<u32>(signs) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u));
}

// The lowest 7 bits, and an eighth that makes the number of ones even.
fn even_signs(bits: u32) -> u32 {
    let seven = bits & 127u;
    return seven | ((countOneBits(seven) & 1u) << 7u);
}

// The 16 weights of two points of IQ2's grids with eight signs each.
fn iq2_points(d: f32, point: vec2<u32>, signs: vec2<u32>) -> mat4x4<f32> {
    let a = grid_code(point.x);
    let b = grid_code(point.y);
    return mat4x4<f32>(
        d * with_signs(iq2_values(a), signs.x),
        d * with_signs(iq2_values(a >> 8u), signs.x >> 4u),
        d * with_signs(iq2_values(b), signs.y),
        d * with_signs(iq2_values(b >> 8u), signs.y >> 4u),
    );
}

// The 16 weights of two points of IQ1's grid, moved by a shift each.
fn iq1_points(d: f32, point: vec2<u32>, shift: vec2<f32>) -> mat4x4<f32> {
    let a = grid_code(point.x);
    let b = grid_code(point.y);
    return mat4x4<f32>(
        d * (iq1_values(a) + vec4<f32>(shift.x)),
        d * (iq1_values(a >> 8u) + vec4<f32>(shift.x)),
        d * (iq1_values(b) + vec4<f32>(shift.y)),
        d * (iq1_values(b >> 8u) + vec4<f32>(shift.y)),
    );
}
