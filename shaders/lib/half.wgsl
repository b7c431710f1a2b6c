// f16 to f32 with integer arithmetic: unpack2x16float may flush subnormals, and scales in real files can be subnormal.

fn half_bits(h: u32) -> f32 {
    let sign = (h & 0x8000u) << 16u;
    let exponent = (h >> 10u) & 31u;
    let mantissa = h & 0x3ffu;
    // Exact: at most 10 bits times a power of two, a normal f32 number or 0.
    let subnormal = bitcast<u32>(f32(mantissa) * 5.9604644775390625e-8) | sign;
    let normal = sign | ((exponent + 112u) << 23u) | (mantissa << 13u);
    let special = sign | 0x7f800000u | (mantissa << 13u);
    return bitcast<f32>(select(select(normal, special, exponent == 31u), subnormal, exponent == 0u));
}

// The low and the high half of a word.
fn halves(word: u32) -> vec2<f32> {
    return vec2<f32>(half_bits(word & 0xffffu), half_bits(word >> 16u));
}
