// Small integers out of words, lowest byte first.

// The four bytes of a word.
fn bytes(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
}

// The four bytes of a word, as numbers from 0 to 255. They go through signed integers, because processors without AVX-512 convert
// no others in one instruction.
fn numbers(word: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(bytes(word)));
}

// The four bytes of a word, as numbers from -128 to 127.
fn signed_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// Word `n` of a plane of words that starts at vec4 `at`.
fn plane_word(at: u32, n: u32) -> u32 {
    return stored(at + (n >> 2u))[n & 3u];
}

// Byte `n` of a plane of bytes that starts at vec4 `at`.
fn plane_byte(at: u32, n: u32) -> u32 {
    return (stored(at + (n >> 4u))[(n >> 2u) & 3u] >> ((n & 3u) * 8u)) & 255u;
}

// Half `n` of a plane of halves that starts at vec4 `at`.
fn plane_half(at: u32, n: u32) -> f32 {
    return half_bits((stored(at + (n >> 3u))[(n >> 1u) & 3u] >> ((n & 1u) * 16u)) & 0xffffu);
}

// Byte `n` of 16.
fn byte_of(words: vec4<u32>, n: u32) -> u32 {
    let pair = select(words.xy, words.zw, (n & 8u) != 0u);
    return (select(pair.x, pair.y, (n & 4u) != 0u) >> ((n & 3u) * 8u)) & 255u;
}
