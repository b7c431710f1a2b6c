// Σ_s probs · v over s ≤ start + t, of those the last `window`. A workgroup makes one head of one position.
// Order of a sum: LANES threads take turns over s, each for 4 of the D values, then a tree.
// [heads, T, S], cache [capacity, kv_heads·D] → [T, heads·D]
struct Params {
    quads: u32,    // D / 4
    heads: u32,
    kv_heads: u32,
    start: u32,
    seen: u32,     // S
    window: u32,   // keys that a position sees, its own among them
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> probs: array<f32>;         // [heads, T, S]
@group(0) @binding(1) var<storage, read> v: array<vec4<f32>>;       // [capacity, kv_heads, D / 4]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // [T, heads, D / 4]

var<workgroup> partial: array<vec4<f32>, LANES * COLUMNS>;

@compute @workgroup_size(COLUMNS, LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
) {
    let head = group.x;
    let t = group.y;
    let row = (head * grid.y + t) * p.seen;
    let visible = min(p.start + t + 1u, p.seen);
    let first_key = max(p.start + t + 1u, p.window) - p.window;
    let kv_head = head / (p.heads / p.kv_heads);
    let at = id.y * COLUMNS + id.x;
    for (var first = 0u; first < p.quads; first += COLUMNS) {
        let column = first + id.x;
        var sum = vec4<f32>();
        if column < p.quads {
            for (var s = first_key + id.y; s < visible; s += LANES) {
                sum = fma(vec4<f32>(probs[row + s]), v[(s * p.kv_heads + kv_head) * p.quads + column], sum);
            }
        }
        partial[at] = sum;
        for (var step = LANES / 2u; step > 0u; step /= 2u) {
            workgroupBarrier();
            if id.y < step {
                partial[at] += partial[at + step * COLUMNS];
            }
        }
        if id.y == 0u && column < p.quads {
            y[(t * p.heads + head) * p.quads + column] = partial[at];
        }
        workgroupBarrier();
    }
}
