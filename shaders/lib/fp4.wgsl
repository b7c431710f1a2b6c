// Twice the E2M1 values of four nibbles: 0 1 2 3 4 6 8 12 and their negatives.
fn fp4_value(q: vec4<u32>) -> vec4<f32> {
    let word = select(vec4<u32>(0x03020100u), vec4<u32>(0x0c080604u), (q & vec4<u32>(4u)) != vec4<u32>(0u));
    let magnitude = vec4<i32>((word >> ((q & vec4<u32>(3u)) * vec4<u32>(8u))) & vec4<u32>(15u));
    // Negated as integers: ggml's table has one zero, not two.
    return vec4<f32>(select(magnitude, -magnitude, (q & vec4<u32>(8u)) != vec4<u32>(0u)));
}
