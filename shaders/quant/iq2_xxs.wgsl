// IQ2_XXS: blocks of 256. Body 4 vec4: two words for each group of 32 weights, the first with four points of eight, a byte each, the second
// with 7 bits of signs for each point and, on top, 4 bits of scale. Tail 2 bytes: d. weight = (d·(1/2 + scale)/4)·value·sign
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return i * 8u + h * 4u;
}

struct Block {
    at: u32,
    d: f32,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    return Block(row + b * 4u, plane_half(tail, b));
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let both = stored(s.at + (c >> 1u));
    let group = select(both.xy, both.zw, (c & 1u) != 0u);
    let point = (vec2<u32>(group.x >> (16u * h)) >> vec2<u32>(0u, 8u)) & vec2<u32>(255u);
    let signs = group.y >> (14u * h);
    let d = s.d * (0.5 + f32(group.y >> 28u)) * 0.25;
    return iq2_points(d, point, vec2<u32>(even_signs(signs), even_signs(signs >> 7u)));
}
