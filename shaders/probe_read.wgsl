// Reads memory and does as little else as it can: what an adapter's read bandwidth is measured by.
//
// A workgroup reads one piece of x without a gap; thread i reads every THREADS-th vec4 of it.
struct Params {
    // vec4 that one thread reads.
    reads: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;   // [groups, reads, THREADS]
@group(0) @binding(1) var<storage, read_write> y: array<u32>;   // [groups, THREADS]

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    var at = group.x * p.reads * THREADS + i;
    // Four sums, so that a load need not wait for the addition before it.
    var a = vec4<u32>();
    var b = vec4<u32>();
    var c = vec4<u32>();
    var d = vec4<u32>();
    for (var n = 0u; n < p.reads; n += 4u) {
        a += x[at];
        b += x[at + THREADS];
        c += x[at + 2u * THREADS];
        d += x[at + 3u * THREADS];
        at += 4u * THREADS;
    }
    let sum = (a + b) + (c + d);
    y[group.x * THREADS + i] = (sum.x + sum.y) + (sum.z + sum.w);
}
