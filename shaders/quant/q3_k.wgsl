// Q3_K: blocks of 256. Body 7 vec4: 32 bytes of third bits, 64 bytes of 2-bit weights, then 12 bytes of 6-bit scales, d and
// 2 bytes of padding. weight = (d·(scale − 32))·(q − 4·(third bit is 0))
// In each half of a block, byte l holds weights l, l + 32, l + 64 and l + 96, lowest bits first; the third bits of
// the weights l, l + 32, … of the whole block are bits 0, 1, … of byte l.
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return (i >> 3u) * 64u + ((i >> 2u) & 1u) * 32u + (((i >> 1u) & 1u) * 2u + h) * 8u + (i & 1u) * 4u;
}

fn three(low: u32, high: u32) -> vec4<f32> {
    return numbers(low | (high << 2u)) - vec4<f32>(4.0);
}

struct Block {
    at: u32,
    high0: vec4<u32>,
    high1: vec4<u32>,
    scales: vec3<u32>,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = row + b * 7u;
    let last = stored(at + 6u);
    return Block(at, stored(at), stored(at + 1u), last.xyz, half_bits(last.w & 0xffffu));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let upper = c >> 2u;
    let shift = ((c >> 1u) & 1u) * 2u + h;
    let low = (stored(s.at + 2u + upper * 2u + (c & 1u)) >> vec4<u32>(2u * shift)) & vec4<u32>(0x03030303u);
    let high = (select(s.high0, s.high1, (c & 1u) != 0u) >> vec4<u32>(upper * 4u + shift)) & vec4<u32>(0x01010101u);
    // Scale n: its low 4 bits are a nibble of bytes 0 to 7 (high nibbles for n ≥ 8), its high 2 bits are in byte 8 + n % 4.
    let n = upper * 8u + shift * 2u + (c & 1u);
    let nibble = (select(s.scales.x, s.scales.y, (n & 4u) != 0u) >> ((n & 3u) * 8u + (n >> 3u) * 4u)) & 15u;
    let top = (s.scales.z >> ((n & 3u) * 8u + (n >> 2u) * 2u)) & 3u;
    let d = s.d * (f32(nibble | (top << 4u)) - 32.0);
    return mat4x4<f32>(
        d * three(low.x, high.x),
        d * three(low.y, high.y),
        d * three(low.z, high.z),
        d * three(low.w, high.w),
    );
}
