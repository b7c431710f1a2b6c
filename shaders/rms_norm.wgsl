// x / √(mean(x²) + eps) · weight over groups of n values, a workgroup a group. [G, n] → same
struct Params {
    n: u32,
    groups: u32, // G
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weight: array<f32>;  // [n]
@group(0) @binding(1) var<storage, read> x: array<f32>;       // [G, n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [G, n]

// What is normalised (lib/rms.wgsl).
fn value(at: u32) -> f32 {
    return x[at];
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let g = group.y * grid.x + group.x;
    let start = min(g, p.groups - 1u) * p.n;
    let scale = rms_scale(id.x, start);
    if g < p.groups {
        for (var i = id.x; i < p.n; i += THREADS) {
            y[start + i] = x[start + i] * scale * weight[i];
        }
    }
}
