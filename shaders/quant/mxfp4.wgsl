// MXFP4: blocks of 32. Body 1 vec4: low nibbles are weights 0 to 15, high nibbles 16 to 31. Tail 1 byte: the exponent e.
// weight = 2^(e − 128)·v, v twice the E2M1 value of the nibble: 0 1 2 3 4 6 8 12 and their negatives.
// e < 2 makes the scale itself subnormal, which WGSL may flush, so the scale is applied as two normal powers of two.
const PAIRS: u32 = 1u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    e: u32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b, plane_byte(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let q = (stored(s.at) >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let e = s.e;
    // 2^(e − 128) = 2^(e/2 − 64) · 2^(e − e/2 − 64)
    let a = bitcast<f32>((e / 2u + 63u) << 23u);
    let b = bitcast<f32>((e - e / 2u + 63u) << 23u);
    return mat4x4<f32>(
        a * fp4_value(bytes(q.x)) * b,
        a * fp4_value(bytes(q.y)) * b,
        a * fp4_value(bytes(q.z)) * b,
        a * fp4_value(bytes(q.w)) * b,
    );
}
