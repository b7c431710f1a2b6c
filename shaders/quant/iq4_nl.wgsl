// IQ4_NL: blocks of 32. Body 1 vec4: low nibbles are weights 0 to 15, high nibbles 16 to 31. Tail 2 bytes: d.
// weight = d·table[q]
const PAIRS: u32 = 1u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b, plane_half(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let q = (stored(s.at) >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let d = s.d;
    return mat4x4<f32>(
        d * iq4_value(bytes(q.x)),
        d * iq4_value(bytes(q.y)),
        d * iq4_value(bytes(q.z)),
        d * iq4_value(bytes(q.w)),
    );
}
