// Q3_K: blocks of 256. Body 7 vec4: 32 bytes of third bits, 64 bytes of 2-bit weights, then 12 bytes of 6-bit scales, d and
// 2 bytes of padding. weight = (d·(scale − 32))·(q − 4·(third bit is 0))
// In each half of a block, byte l holds weights l, l + 32, l + 64 and l + 96, lowest bits first; the third bits of block
// columns l, l + 32, … are bits 0, 1, … of byte l.
fn columns(i: u32, h: u32) -> u32 {
    return (i >> 3u) * 64u + ((i >> 2u) & 1u) * 32u + (((i >> 1u) & 1u) * 2u + h) * 8u + (i & 1u) * 4u;
}

fn three(low: u32, high: u32) -> vec4<f32> {
    return vec4<f32>(bytes(low | (high << 2u))) - vec4<f32>(4.0);
}

fn weights(row: u32, tail: u32, i: u32, h: u32) -> mat4x4<f32> {
    let at = row + (i >> 3u) * 7u;
    let upper = (i >> 2u) & 1u;
    let s = ((i >> 1u) & 1u) * 2u + h;
    let low = (weight_data[at + 2u + upper * 2u + (i & 1u)] >> vec4<u32>(2u * s)) & vec4<u32>(0x03030303u);
    let high = (weight_data[at + (i & 1u)] >> vec4<u32>(upper * 4u + s)) & vec4<u32>(0x01010101u);
    // Scale n: its low 4 bits are a nibble of bytes 0 to 7 (high nibbles for n ≥ 8), its high 2 bits are in byte 8 + n % 4.
    let n = upper * 8u + s * 2u + (i & 1u);
    let last = weight_data[at + 6u];
    let nibble = (select(last.x, last.y, (n & 4u) != 0u) >> ((n & 3u) * 8u + (n >> 3u) * 4u)) & 15u;
    let top = (last.z >> ((n & 3u) * 8u + (n >> 2u) * 2u)) & 3u;
    let d = half_bits(last.w & 0xffffu) * (f32(nibble | (top << 4u)) - 32.0);
    return mat4x4<f32>(
        d * three(low.x, high.x),
        d * three(low.y, high.y),
        d * three(low.z, high.z),
        d * three(low.w, high.w),
    );
}
