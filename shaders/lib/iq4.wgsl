// The 16 values of IQ4_NL and IQ4_XS, as ggml's kvalues_iq4nl, packed as signed bytes four to a word.
// Chosen by arithmetic rather than from an array: an indexed local array becomes memory traffic on many drivers.
fn iq4_value(q: vec4<u32>) -> vec4<f32> {
    // -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113
    let low = select(vec4<u32>(0xbfad9881u), vec4<u32>(0xf6eaddcfu), (q & vec4<u32>(4u)) != vec4<u32>(0u));
    let high = select(vec4<u32>(0x26190d01u), vec4<u32>(0x71594535u), (q & vec4<u32>(4u)) != vec4<u32>(0u));
    let word = select(low, high, (q & vec4<u32>(8u)) != vec4<u32>(0u));
    let top = word << (vec4<u32>(24u) - (q & vec4<u32>(3u)) * vec4<u32>(8u));
    return vec4<f32>(bitcast<vec4<i32>>(top) >> vec4<u32>(24u));
}
