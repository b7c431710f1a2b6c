// IQ3_XXS: blocks of 256. Body 6 vec4: 64 points of four weights, a byte each; for each group of 32 weights 4 times 7 bits of signs and, on top,
// 4 bits of scale. Tail 2 bytes: d. weight = (d·(1/2 + scale)/2)·value·sign
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

// The values of a point: 4 12 20 28 36 44 52 62.
fn iq3_xxs_values(point: u32) -> vec4<f32> {
    let rank = four_bits(grid_code(point));
    let last = select(vec4<u32>(4u), vec4<u32>(6u), rank == vec4<u32>(7u));
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(8u) * rank + last));
}

struct Block {
    at: u32,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b * 6u, plane_half(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let point = bytes(stored(s.at + (c >> 1u))[(c & 1u) * 2u + h]);
    let packed = stored(s.at + 4u + (c >> 2u))[c & 3u];
    let d = s.d * (0.5 + f32(packed >> 28u)) * 0.5;
    let a = even_signs(packed >> (14u * h));
    let b = even_signs(packed >> (14u * h + 7u));
    return mat4x4<f32>(
        d * with_signs(iq3_xxs_values(point.x), a),
        d * with_signs(iq3_xxs_values(point.y), a >> 4u),
        d * with_signs(iq3_xxs_values(point.z), b),
        d * with_signs(iq3_xxs_values(point.w), b >> 4u),
    );
}
