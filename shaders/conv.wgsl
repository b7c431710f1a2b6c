// silu(Σ_j weight[c, j] · x[t + j − L + 1, c]): of the last L positions those before the call are the cache's, and there are none before the first.
// A thread makes one value, of the channels whose weights this piece holds. Order of a sum: oldest position to newest, each term fused.
// The sigmoid uses e^-|sum|, which cannot overflow. [T, C], cache [capacity, C], [C, L] → [T, C]
struct Params {
    n: u32,        // T · count
    channels: u32, // C
    kernel: u32,   // L
    stride: u32,   // values from a row of weights to the next
    first: u32,    // the piece holds the rows from first on,
    count: u32,    // so many
    start: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weight: array<f32>;  // [count, stride]
@group(0) @binding(1) var<storage, read> x: array<f32>;       // [T, C]
@group(0) @binding(2) var<storage, read> cache: array<f32>;   // [capacity, C]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T, C]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.n {
        let t = n / p.count;
        let row = n % p.count;
        let channel = p.first + row;
        let end = p.start + t + 1u;
        let taps = min(p.kernel, end);
        let w = row * p.stride + (p.kernel - taps);
        var sum = 0.0;
        for (var i = 0u; i < taps; i++) {
            let position = end - taps + i;
            var value: f32;
            if position < p.start {
                value = cache[position * p.channels + channel];
            } else {
                value = x[(position - p.start) * p.channels + channel];
            }
            sum = fma(weight[w + i], value, sum);
        }
        let e = exp_f32(-abs(sum));
        let sigmoid = select(e, 1.0, sum >= 0.0) / (1.0 + e);
        y[t * p.channels + channel] = sum * sigmoid;
    }
}
