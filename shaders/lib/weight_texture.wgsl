// The weights of a piece in a texture, TEXELS vec4 a row. Software adapters load the texels of eight lanes at once, which is about ten
// times faster than eight elements of a storage buffer, whose bounds they check lane by lane.
@group(0) @binding(0) var weight_data: texture_2d<u32>;

fn texel(at: u32) -> vec2<u32> {
    return vec2<u32>(at % TEXELS, at / TEXELS);
}

fn stored(at: u32) -> vec4<u32> {
    return textureLoad(weight_data, texel(at), 0);
}
