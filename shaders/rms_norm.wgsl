// x / √(mean(x²) + eps) · weight over groups of n values, a workgroup a group; what a row has behind its groups is copied.
// [T, row] → same
struct Params {
    n: u32,
    groups: u32, // T · those of a row
    in_row: u32, // groups in a row
    row: u32,    // in_row · n, and what is copied
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> weight: array<f32>;  // [n]
@group(0) @binding(1) var<storage, read> x: array<f32>;       // [T, row]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [T, row]

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
    let last = min(g, p.groups - 1u);
    let start = last / p.in_row * p.row + last % p.in_row * p.n;
    let scale = rms_scale(id.x, start);
    if g < p.groups {
        for (var i = id.x; i < p.n; i += THREADS) {
            y[start + i] = x[start + i] * scale * weight[i];
        }
        if g % p.in_row + 1u == p.in_row {
            for (var i = p.in_row * p.n + id.x; i < p.row; i += THREADS) {
                let at = g / p.in_row * p.row + i;
                y[at] = x[at];
            }
        }
    }
}
