// Columns of rows from one tensor to another: y[to + r·y_row + c] = x[from + ⌊r / shared_by⌋·x_row + c], 0 for columns that x lacks.
// Words, not numbers: every bit pattern survives.
struct Params {
    words: u32,  // rows · y_cols
    y_cols: u32,
    x_cols: u32, // ≤ y_cols
    y_row: u32,  // words from a row to the next
    x_row: u32,
    shared_by: u32, // rows of y that are one of x
    from_: u32,
    to: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>) {
    let n = id.y * grid.x * THREADS + id.x;
    if n < p.words {
        let row = n / p.y_cols;
        let column = n % p.y_cols;
        var word = 0u;
        if column < p.x_cols {
            word = x[p.from_ + row / p.shared_by * p.x_row + column];
        }
        let at = p.to + row * p.y_row + column;
        y[at] = word;
    }
}
