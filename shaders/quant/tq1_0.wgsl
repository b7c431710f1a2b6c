// TQ1_0: blocks of 256. Body 3 vec4: 48 bytes of five base-3 digits, as a fraction of 256. Tail 8 bytes: 4 bytes of four digits; d; 2 bytes of
// padding. weight = d·(digit − 1)
// Byte l < 32 holds weights l, l + 32, … l + 128, the most significant digit first, byte 32 + l weights 160 + l, 176 + l, … 224 + l, and byte l of
// the tail weights 240 + l, 244 + l, … 252 + l.
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

// Of each byte, times a power of 3 and without its whole part, the first digit behind the point.
fn digits(word: u32, power: u32) -> vec4<f32> {
    let fraction = (bytes(word) * vec4<u32>(power)) & vec4<u32>(255u);
    return vec4<f32>(bitcast<vec4<i32>>((fraction * vec4<u32>(3u)) >> vec4<u32>(8u)));
}

struct Block {
    at: u32,
    four: u32,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let n = 2u * b;
    return Block(row + b * 3u, plane_word(tail, n), half_bits(plane_word(tail, n + 1u) & 0xffffu));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    // Run of 16 weights: of vec4 0 and 1 in turn, of vec4 2, or the last, of the tail, whose digits are four weights each.
    let run = 2u * c + h;
    let narrow = run >= 10u;
    let digit = select(run >> 1u, run - 10u, narrow);
    let power = select((0x1b090301u >> ((digit & 3u) * 8u)) & 255u, 81u, digit == 4u);
    let last = run == 15u;
    let q = select(stored(s.at + select(run & 1u, 2u, narrow)), vec4<u32>(s.four), last);
    let powers = select(vec4<u32>(power), vec4<u32>(1u, 3u, 9u, 27u), last);
    let d = s.d;
    let one = vec4<f32>(1.0);
    return mat4x4<f32>(
        d * (digits(q.x, powers.x) - one),
        d * (digits(q.y, powers.y) - one),
        d * (digits(q.z, powers.z) - one),
        d * (digits(q.w, powers.w) - one),
    );
}
