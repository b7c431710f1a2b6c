// Value n of Σ_k weights[t, k] · down[t, k, ·], k ascending.
fn combined(n: u32) -> f32 {
    let t = n / p.cols;
    let column = n % p.cols;
    var sum = weights[t * p.k] * down[t * p.k * p.cols + column];
    for (var k = 1u; k < p.k; k++) {
        let slot = t * p.k + k;
        sum = fma(weights[slot], down[slot * p.cols + column], sum);
    }
    return sum;
}
