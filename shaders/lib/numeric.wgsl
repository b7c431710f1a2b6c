// Numbers: NaN by its bits, and an exponential made of basic operations.
//
// WGSL lets an implementation assume that NaN does not occur, and bounds its own exp by 3 + 2|x| ULP only. Both matter to a
// program that measures errors, so neither is left to the driver.

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// A quiet NaN. Made from a runtime value, because WGSL rejects a constant expression that is not finite.
fn make_nan(zero: u32) -> f32 {
    return bitcast<f32>(zero | 0x7fc00000u);
}

// e^x within 3 ULP; NaN stays NaN, results below the smallest normal number may be 0.
// x = n·ln 2 + r, |r| ≤ ln 2 / 2, ln 2 in two parts of which n·(first part) is exact (Cody and Waite); e^r by the
// polynomial of Cephes' expf.
fn exp_f32(x: f32) -> f32 {
    let high = select(x, 100.0, x > 100.0);
    let y = select(high, -110.0, high < -110.0);
    let n = round(y * 1.44269504088896341);
    let r = (y - n * 0.693359375) + n * 2.12194440e-4;
    var p = 1.9875691500e-4;
    p = p * r + 1.3981999507e-3;
    p = p * r + 8.3334519073e-3;
    p = p * r + 4.1665795894e-2;
    p = p * r + 1.6666665459e-1;
    p = p * r + 5.0000001201e-1;
    let e = (p * r * r + r) + 1.0;
    // Two steps, so that n = 128 reaches the largest numbers and n < -126 the smallest.
    let k = i32(n);
    let half = k >> 1u;
    let scaled = e * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(k - half + 127) << 23u);
    return select(scaled, x, is_nan(x));
}
