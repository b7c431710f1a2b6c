// Q4_K: blocks of 256. Body 9 vec4: d, dmin, 12 bytes of 6-bit scales and mins for 8 sub-blocks of 32; 128 bytes of nibbles.
// weight = (d·scale)·q − dmin·min
// In each quarter of a block, byte l holds weight l in its low and weight l + 32 in its high nibble.
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return (i >> 3u) * 64u + ((i >> 1u) & 3u) * 16u + h * 8u + (i & 1u) * 4u;
}

struct Block {
    at: u32,
    dm: vec2<f32>,
    words: vec3<u32>,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = row + b * 9u;
    let head = stored(at);
    return Block(at, halves(head.x), head.yzw);
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let q = (stored(s.at + 1u + c) >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let dm = s.dm * scale_min(s.words, (c >> 1u) * 2u + h);
    let m = vec4<f32>(dm.y);
    return mat4x4<f32>(
        dm.x * numbers(q.x) - m,
        dm.x * numbers(q.y) - m,
        dm.x * numbers(q.z) - m,
        dm.x * numbers(q.w) - m,
    );
}
