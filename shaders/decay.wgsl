// weight · ln(1 + e^x), the weight a row for every row. ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|), which cannot overflow. [T, N] → same
struct Params {
    n: u32,    // T · N
    cols: u32, // N
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weight: array<f32>;  // [N]
@group(0) @binding(1) var<storage, read> x: array<f32>;       // [T, N]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, N]

// ln(1 + e) for e from 0 to 1, within 5 ULP; NaN stays NaN. WGSL has no such function, and bounds the error of its log near 1 by 2^-21, which is
// more than all of a small e. ln(1 + e) = 2·artanh(s), s = e / (2 + e) ≤ 1/3, which no small e is lost in: 3 ULP of the sum and the division.
// artanh(s) = s·(1 + z/3 + z²/5 + …), z = s² ≤ 1/9, of which the terms after z⁷/15 are less than 2^-28 of the whole. What is added to 1 is
// at most 0.04, so that its errors are small beside those of the sum and the product.
fn log1p_f32(e: f32) -> f32 {
    let s = e / (2.0 + e);
    let z = s * s;
    var series = 1.0 / 15.0;
    series = fma(series, z, 1.0 / 13.0);
    series = fma(series, z, 1.0 / 11.0);
    series = fma(series, z, 1.0 / 9.0);
    series = fma(series, z, 1.0 / 7.0);
    series = fma(series, z, 1.0 / 5.0);
    series = fma(series, z, 1.0 / 3.0);
    return 2.0 * s * fma(series, z, 1.0);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.n {
        // Not max, which need not keep NaN.
        let above = select(x[n], 0.0, x[n] < 0.0);
        y[n] = weight[n % p.cols] * (above + log1p_f32(exp_f32(-abs(x[n]))));
    }
}
