// IQ1_S: blocks of 256. Body 3 vec4: the low 8 bits of 32 points of eight weights; 16 bits for each group of 32 weights: the high 3 bits of its
// four points, 3 bits of scale and, on top, the sign of its shift. Tail 2 bytes: d. weight = (d·(2·scale + 1))·(value ± 1/8)
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    packed: vec4<u32>,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = row + b * 3u;
    return Block(at, stored(at + 2u), plane_half(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let packed = (s.packed[c >> 1u] >> ((c & 1u) * 16u)) & 0xffffu;
    let low = stored(s.at + (c >> 2u))[c & 3u] >> (16u * h);
    let high = packed >> (6u * h);
    let point = (vec2<u32>(low, low >> 8u) & vec2<u32>(255u)) | ((vec2<u32>(high, high >> 3u) & vec2<u32>(7u)) << vec2<u32>(8u));
    let d = s.d * f32(2u * ((packed >> 12u) & 7u) + 1u);
    return iq1_points(d, point, vec2<f32>(select(0.125, -0.125, packed >= 0x8000u)));
}
