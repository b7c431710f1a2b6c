// Multiplies and adds in registers and does nothing else: what an adapter's arithmetic is measured by.
//
// Eight independent sums hide the latency of one; eight steps of each are written out, 64 multiply-adds a round. They
// are written as products and sums, which a driver may fuse and most do: an explicit fma is a call into a library on
// some software adapters.
struct Params {
    rounds: u32,
    x: f32,
    y: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> out: array<f32>; // [groups, THREADS]

// Four steps of four of the sums.
fn step4(s: vec4<f32>) -> vec4<f32> {
    let a = s * p.x + p.y;
    let b = a * p.x + p.y;
    let c = b * p.x + p.y;
    return c * p.x + p.y;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let start = f32(i);
    var low = vec4(start, start + 1.0, start + 2.0, start + 3.0);
    var high = low + 4.0;
    for (var n = 0u; n < p.rounds; n++) {
        low = step4(low);
        high = step4(high);
        low = step4(low);
        high = step4(high);
    }
    let sum = low + high;
    out[group.x * THREADS + i] = (sum.x + sum.y) + (sum.z + sum.w);
}
