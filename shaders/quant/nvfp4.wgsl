// NVFP4: blocks of 64. Body 2 vec4: 8 bytes for each run of 16 weights, low nibbles the first eight, high nibbles the others. Tail 4 bytes: a
// scale for each run, UE4M3. weight = (scale/2)·v, v twice the E2M1 value of the nibble.
const PAIRS: u32 = 2u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

// Half of a UE4M3. Its NaN, 0x7f, is 0, and a bit where a sign would be counts for nothing, as in ggml.
fn ue4m3_half(d: u32) -> f32 {
    let exponent = (d >> 3u) & 15u;
    let mantissa = d & 7u;
    let normal = bitcast<f32>(((exponent + 119u) << 23u) | (mantissa << 20u));
    let small = f32(mantissa) * 0.0009765625;
    return select(select(normal, small, exponent == 0u), 0.0, d == 0x7fu);
}

struct Block {
    at: u32,
    scales: u32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b * 2u, plane_word(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let both = stored(s.at + c);
    let q = select(both.xy, both.zw, h != 0u);
    let low = q & vec2<u32>(0x0f0f0f0fu);
    let high = (q >> vec2<u32>(4u)) & vec2<u32>(0x0f0f0f0fu);
    let d = ue4m3_half((s.scales >> (8u * (2u * c + h))) & 255u);
    return mat4x4<f32>(
        d * fp4_value(bytes(low.x)),
        d * fp4_value(bytes(low.y)),
        d * fp4_value(bytes(high.x)),
        d * fp4_value(bytes(high.y)),
    );
}
