// Scale and minimum of sub-block j of Q4_K and Q5_K; `words` are the 12 bytes with the 6 bits of all of them.
fn scale_min(words: vec3<u32>, j: u32) -> vec2<f32> {
    let w = words >> vec3<u32>((j & 3u) * 8u);
    let low = vec2<u32>(w.x & 63u, w.y & 63u);
    let high = vec2<u32>((w.z & 15u) | ((w.x >> 2u) & 48u), ((w.z >> 4u) & 15u) | ((w.y >> 2u) & 48u));
    return vec2<f32>(select(low, high, j >= 4u));
}
