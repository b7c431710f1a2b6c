// Reads a storage buffer and does as little else as it can: what an adapter's read bandwidth is measured by.
//
// A workgroup reads one piece of x without a gap; thread i reads every THREADS-th vec4 of it.
struct Params {
    // vec4 that one thread reads.
    reads: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>; // [groups, reads, THREADS]
@group(0) @binding(1) var<storage, read_write> y: array<u32>; // [groups, THREADS]

fn stored(at: u32) -> vec4<u32> {
    return x[at];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    y[group.x * THREADS + i] = sum_reads(group.x * p.reads * THREADS + i);
}
