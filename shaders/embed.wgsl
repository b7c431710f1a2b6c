// Row tokens[t] of a quantized table, dequantized: 16 values a thread. → [T, H]
// This piece of the table holds rows first to first + count - 1.
struct Params {
    pairs: u32,  // ⌈H / 32⌉
    stride: u32, // vec4 a weight row
    tail: u32,   // vec4 from a row's start to its second plane
    cols: u32,   // H
    first: u32,
    count: u32,
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;  // [T]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, H]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let run = group.x * 64u + id.x;
    let local = tokens[group.y] - p.first; // wraps below `first`
    if run < 2u * p.pairs && local < p.count {
        let row = local * p.stride;
        let w = row_weights(row, row + p.tail, run / 2u, run & 1u);
        let column = columns(run / 2u, run & 1u) * 4u;
        for (var j = 0u; j < 4u; j++) {
            for (var k = 0u; k < 4u; k++) {
                let c = column + j * 4u + k;
                if c < p.cols {
                    y[group.y * p.cols + c] = w[j][k];
                }
            }
        }
    }
}
