// TQ2_0: blocks of 256. Body 4 vec4: 64 bytes of 2-bit weights. Tail 2 bytes: d. weight = d·(q − 1)
// In each half of a block, byte l holds weights l, l + 32, l + 64 and l + 96, lowest bits first.
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return (i >> 3u) * 64u + ((i >> 2u) & 1u) * 32u + (((i >> 1u) & 1u) * 2u + h) * 8u + (i & 1u) * 4u;
}

struct Block {
    at: u32,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b * 4u, plane_half(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let shift = ((c >> 1u) & 1u) * 2u + h;
    let q = (stored(s.at + (c >> 2u) * 2u + (c & 1u)) >> vec4<u32>(2u * shift)) & vec4<u32>(0x03030303u);
    let d = s.d;
    let one = vec4<f32>(1.0);
    return mat4x4<f32>(
        d * (numbers(q.x) - one),
        d * (numbers(q.y) - one),
        d * (numbers(q.z) - one),
        d * (numbers(q.w) - one),
    );
}
