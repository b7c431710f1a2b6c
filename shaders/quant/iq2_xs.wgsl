// IQ2_XS: blocks of 256. Body 4 vec4: 32 points of eight weights, 16 bits each: 9 of the point, 7 of signs. Tail 12 bytes: a nibble of scale
// for each run of 16 weights; d; 2 bytes of padding. weight = (d·(1/2 + scale)/4)·value·sign
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    scales: vec2<u32>,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let n = 3u * b;
    let scales = vec2<u32>(plane_word(tail, n), plane_word(tail, n + 1u));
    return Block(row + b * 4u, scales, half_bits(plane_word(tail, n + 2u) & 0xffffu));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let run = 2u * c + h;
    let word = stored(s.at + (c >> 1u))[run & 3u];
    let scale = (select(s.scales.x, s.scales.y, run >= 8u) >> ((run & 7u) * 4u)) & 15u;
    let d = s.d * (0.5 + f32(scale)) * 0.25;
    let point = vec2<u32>(word, word >> 16u) & vec2<u32>(511u);
    return iq2_points(d, point, vec2<u32>(even_signs(word >> 9u), even_signs(word >> 25u)));
}
