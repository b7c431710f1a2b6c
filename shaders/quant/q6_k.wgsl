// Q6_K: blocks of 256. Body 13 vec4: 128 bytes of low nibbles, 64 bytes of high 2 bits, 16 int8 scales, one for each run of 16
// weights. Tail 2 bytes: d. weight = (d·scale)·(q − 32)
// In each half of a block, byte l < 64 of the nibbles holds weight l in its low and weight l + 64 in its high nibble; byte
// l < 32 of the high bits holds those of weights l, l + 32, l + 64 and l + 96, lowest bits first.
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return (i >> 3u) * 64u + ((i >> 2u) & 1u) * 32u + h * 16u + (i & 3u) * 4u;
}

struct Block {
    at: u32,
    scales: vec4<u32>,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = row + b * 13u;
    return Block(at, stored(at + 12u), plane_half(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let upper = c >> 2u;
    let low = (stored(s.at + c) >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let shift = ((c >> 1u) & 1u) + h * 2u;
    let high = (stored(s.at + 8u + upper * 2u + (c & 1u)) >> vec4<u32>(2u * shift)) & vec4<u32>(0x03030303u);
    let q = low | (high << vec4<u32>(4u));
    let scale = bitcast<i32>(byte_of(s.scales, upper * 8u + h * 4u + (c & 3u)) << 24u) >> 24u;
    let d = s.d * f32(scale);
    let middle = vec4<f32>(32.0);
    return mat4x4<f32>(
        d * (numbers(q.x) - middle),
        d * (numbers(q.y) - middle),
        d * (numbers(q.z) - middle),
        d * (numbers(q.w) - middle),
    );
}
