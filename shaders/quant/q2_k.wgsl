// Q2_K: blocks of 256. Body 5 vec4: 16 bytes of scale (low nibble) and min (high nibble), one for each run of 16 weights;
// 64 bytes of 2-bit weights. Tail 4 bytes: d, dmin. weight = (d·scale)·q − dmin·min
// In each half of a block, byte l holds weights l, l + 32, l + 64 and l + 96, lowest bits first.
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    // half (i >> 2) & 1, bits s = ((i >> 1) & 1)·2 + h, run i & 1 of 16 bytes
    return (i >> 3u) * 64u + ((i >> 2u) & 1u) * 32u + (((i >> 1u) & 1u) * 2u + h) * 8u + (i & 1u) * 4u;
}

struct Block {
    at: u32,
    scales: vec4<u32>,
    dm: vec2<f32>,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = row + b * 5u;
    return Block(at, stored(at), halves(stored(tail + (b >> 2u))[b & 3u]));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let upper = c >> 2u;
    let shift = ((c >> 1u) & 1u) * 2u + h;
    let q = (stored(s.at + 1u + upper * 2u + (c & 1u)) >> vec4<u32>(2u * shift)) & vec4<u32>(0x03030303u);
    let scale_min = byte_of(s.scales, upper * 8u + shift * 2u + (c & 1u));
    let d = s.dm.x * f32(scale_min & 15u);
    let m = vec4<f32>(s.dm.y * f32(scale_min >> 4u));
    return mat4x4<f32>(
        d * numbers(q.x) - m,
        d * numbers(q.y) - m,
        d * numbers(q.z) - m,
        d * numbers(q.w) - m,
    );
}
