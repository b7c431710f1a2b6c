// a + b, elementwise.
struct Params {
    n: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> a: array<f32>;       // [n]
@group(0) @binding(1) var<storage, read> b: array<f32>;       // [n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [n]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let n = (group.y * grid.x + group.x) * 64u + id.x;
    if n < p.n {
        y[n] = a[n] + b[n];
    }
}
