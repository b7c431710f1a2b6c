// What the matrix products share, however they divide the work.

// The products of a weight row's four columns with those of four positions.
fn products(w: vec4<f32>, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot(w, x0), dot(w, x1), dot(w, x2), dot(w, x3));
}

// The sum of four accumulators, in a tree.
fn add_up(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}
