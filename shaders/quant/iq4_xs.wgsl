// IQ4_XS: blocks of 256. Body 8 vec4, one for each sub-block of 32: low nibbles are its weights 0 to 15, high nibbles 16 to 31.
// Tail 8 bytes: d and 16 bits with the high 2 bits of the 8 scales; 4 bytes with their low 4 bits.
// weight = (d·(scale − 32))·table[q]
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    d: f32,
    low: u32,
    high: u32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let words = tail + (b >> 1u);
    let first = stored(words)[(b & 1u) * 2u];
    let second = stored(words)[(b & 1u) * 2u + 1u];
    return Block(row + b * 8u, half_bits(first & 0xffffu), second, first >> 16u);
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let q = (stored(s.at + c) >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let scale = ((s.low >> (c * 4u)) & 15u) | (((s.high >> (c * 2u)) & 3u) << 4u);
    let d = s.d * (f32(scale) - 32.0);
    return mat4x4<f32>(
        d * iq4_value(bytes(q.x)),
        d * iq4_value(bytes(q.y)),
        d * iq4_value(bytes(q.z)),
        d * iq4_value(bytes(q.w)),
    );
}
