// IQ1_M: blocks of 256. Body 3 vec4: the low 8 bits of 32 points of eight weights; a nibble for each point: its high 3 bits and, on top, the
// sign of its shift. Tail 8 bytes: four times 16 bits with 3 bits of scale for four runs of 16 weights and, on top, 4 bits of d, the lowest
// first. weight = (d·(2·scale + 1))·(value ± 1/8)
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    high: vec4<u32>,
    scales: vec2<u32>,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = row + b * 3u;
    let both = stored(tail + (b >> 1u));
    let scales = select(both.xy, both.zw, (b & 1u) != 0u);
    let low = ((scales >> vec2<u32>(12u)) & vec2<u32>(15u)) | ((scales >> vec2<u32>(24u)) & vec2<u32>(0xf0u));
    return Block(at, stored(at + 2u), scales, half_bits(low.x | (low.y << 8u)));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let low = stored(s.at + (c >> 2u))[c & 3u] >> (16u * h);
    let high = byte_of(s.high, 2u * c + h);
    let point = (vec2<u32>(low, low >> 8u) & vec2<u32>(255u)) | ((vec2<u32>(high, high >> 4u) & vec2<u32>(7u)) << vec2<u32>(8u));
    // Run n of 16: bits 3·(n % 4) on of half n / 4.
    let n = 2u * c + h;
    let four = select(s.scales.x, s.scales.y, n >= 8u) >> (((n >> 2u) & 1u) * 16u);
    let d = s.d * f32(2u * ((four >> (3u * (n & 3u))) & 7u) + 1u);
    let minus = (vec2<u32>(high) & vec2<u32>(0x08u, 0x80u)) != vec2<u32>(0u);
    return iq1_points(d, point, select(vec2<f32>(0.125), vec2<f32>(-0.125), minus));
}
