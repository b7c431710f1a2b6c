// x plus the row of biases of its expert, where this piece of the biases holds that row. [T, K, N], [T, K], [E, N] → [T, K, N]
struct Params {
    n: u32,       // T · K · N
    cols: u32,    // N
    stride: u32,  // values from a row of biases to the next
    first: u32,   // the piece holds the rows from first on,
    count: u32,   // so many
    experts: u32, // E
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> bias: array<f32>;    // [count, stride]
@group(0) @binding(1) var<storage, read> x: array<f32>;       // [T, K, N]
@group(0) @binding(2) var<storage, read> ids: array<u32>;     // [T, K]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T, K, N]

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.n {
        let expert = ids[n / p.cols];
        let row = expert - p.first; // wraps below `first`
        if row < p.count {
            y[n] = x[n] + bias[row * p.stride + n % p.cols];
        } else if expert >= p.experts {
            y[n] = make_nan(p.n & 0u);
        }
    }
}
