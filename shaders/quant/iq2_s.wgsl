// IQ2_S: blocks of 256. Body 5 vec4: the low 8 bits of 32 points of eight weights; 32 bytes of signs; the points' high 2 bits, four in a byte;
// a nibble of scale for each run of 16 weights. Tail 2 bytes: d. weight = (d·(1/2 + scale)/4)·value·sign
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    last: vec4<u32>,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = row + b * 5u;
    return Block(at, stored(at + 4u), plane_half(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let at = s.at + (c >> 2u);
    let low = stored(at)[c & 3u] >> (16u * h);
    let signs = stored(at + 2u)[c & 3u] >> (16u * h);
    let high = byte_of(s.last, c) >> (4u * h);
    let scale = (byte_of(s.last, 8u + c) >> (4u * h)) & 15u;
    let d = s.d * (0.5 + f32(scale)) * 0.25;
    let point = (vec2<u32>(low, low >> 8u) & vec2<u32>(255u)) | ((vec2<u32>(high, high >> 2u) & vec2<u32>(3u)) << vec2<u32>(8u));
    return iq2_points(d, point, vec2<u32>(signs, signs >> 8u));
}
