// IQ3_S: blocks of 256. Body 7 vec4: the low 8 bits of 64 points of four weights; 32 bytes of signs; the points' high bits, eight in a byte; a
// nibble of scale for each group of 32 weights, d and 2 bytes of padding. weight = (d·(1 + 2·scale))·value·sign
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

// The values of a point: 1 3 5 7 9 11 13 15.
fn iq3_s_values(point: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(2u) * four_bits(grid_code(point)) + vec4<u32>(1u)));
}

struct Block {
    at: u32,
    last: vec4<u32>,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = row + b * 7u;
    let last = stored(at + 6u);
    return Block(at, last, half_bits(last.w & 0xffffu));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let high = vec4<u32>(byte_of(s.last, c) >> (4u * h)) >> vec4<u32>(0u, 1u, 2u, 3u);
    let point = bytes(stored(s.at + (c >> 1u))[(c & 1u) * 2u + h]) | ((high & vec4<u32>(1u)) << vec4<u32>(8u));
    let signs = stored(s.at + 4u + (c >> 2u))[c & 3u] >> (16u * h);
    let d = s.d * f32(1u + 2u * ((s.last.z >> (4u * c)) & 15u));
    return mat4x4<f32>(
        d * with_signs(iq3_s_values(point.x), signs),
        d * with_signs(iq3_s_values(point.y), signs >> 4u),
        d * with_signs(iq3_s_values(point.z), signs >> 8u),
        d * with_signs(iq3_s_values(point.w), signs >> 12u),
    );
}
