// A quantized matrix as every kernel sees it, whatever its type. A row is a run of blocks, a block of pairs: 32 weights in two
// runs of 16 columns that share bytes. A type's file in quant/ gives
//   PAIRS              pairs in a block
//   columns(i, h)      where run h (0 or 1) of pair i of a row starts, in groups of four columns
//   block(row, tail, b)  what the weights of block b share (scales), and where it starts
//   weights(s, c, h)   the 16 weights of run h of pair c of that block, column j holding weights 4j to 4j + 3
// `row` is where the row starts and `tail` where its second plane starts, both counted in vec4<u32>; see
// src/backend/gpu/layout.rs for the layouts.
@group(0) @binding(0) var<storage, read> weight_data: array<vec4<u32>>;

// The weights of run h of pair i of a row.
fn row_weights(row: u32, tail: u32, i: u32, h: u32) -> mat4x4<f32> {
    return weights(block(row, tail, i / PAIRS), i % PAIRS, h);
}

// f16 to f32 with integer arithmetic: unpack2x16float may flush subnormals, and scales in real files can be subnormal.

fn half_bits(h: u32) -> f32 {
    let sign = (h & 0x8000u) << 16u;
    let exponent = (h >> 10u) & 31u;
    let mantissa = h & 0x3ffu;
    // Exact: at most 10 bits times a power of two, a normal f32 number or 0.
    let subnormal = bitcast<u32>(f32(mantissa) * 5.9604644775390625e-8) | sign;
    let normal = sign | ((exponent + 112u) << 23u) | (mantissa << 13u);
    let special = sign | 0x7f800000u | (mantissa << 13u);
    return bitcast<f32>(select(select(normal, special, exponent == 31u), subnormal, exponent == 0u));
}

// The low and the high half of a word.
fn halves(word: u32) -> vec2<f32> {
    return vec2<f32>(half_bits(word & 0xffffu), half_bits(word >> 16u));
}

// Small integers out of words, lowest byte first.

// The four bytes of a word.
fn bytes(word: u32) -> vec4<u32> {
    return (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
}

// The four bytes of a word, as numbers from -128 to 127.
fn signed_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// Byte `n` of a plane of bytes that starts at vec4 `at`.
fn plane_byte(at: u32, n: u32) -> u32 {
    return (weight_data[at + (n >> 4u)][(n >> 2u) & 3u] >> ((n & 3u) * 8u)) & 255u;
}

// Half `n` of a plane of halves that starts at vec4 `at`.
fn plane_half(at: u32, n: u32) -> f32 {
    return half_bits((weight_data[at + (n >> 3u)][(n >> 1u) & 3u] >> ((n & 1u) * 16u)) & 0xffffu);
}

// Byte `n` of 16.
fn byte_of(words: vec4<u32>, n: u32) -> u32 {
    let pair = select(words.xy, words.zw, (n & 8u) != 0u);
    return (select(pair.x, pair.y, (n & 4u) != 0u) >> ((n & 3u) * 8u)) & 255u;
}

// Q4_K: blocks of 256. Body 9 vec4: d, dmin, 12 bytes of 6-bit scales and mins for 8 sub-blocks of 32; 128 bytes of nibbles.
// weight = (d·scale)·q − dmin·min
// In each quarter of a block, byte l holds weight l in its low and weight l + 32 in its high nibble.
const PAIRS: u32 = 8u;

fn columns(i: u32, h: u32) -> u32 {
    return (i >> 3u) * 64u + ((i >> 1u) & 3u) * 16u + h * 8u + (i & 1u) * 4u;
}

// Scale and min of sub-block j; `words` are the 12 bytes.
fn scale_min(words: vec3<u32>, j: u32) -> vec2<f32> {
    let w = words >> vec3<u32>((j & 3u) * 8u);
    let low = vec2<u32>(w.x & 63u, w.y & 63u);
    let high = vec2<u32>((w.z & 15u) | ((w.x >> 2u) & 48u), ((w.z >> 4u) & 15u) | ((w.y >> 2u) & 48u));
    return vec2<f32>(select(low, high, j >= 4u));
}

struct Block {
    at: u32,
    dm: vec2<f32>,
    words: vec3<u32>,
}

fn block(row: u32, tail: u32, b: u32) -> Block {
    let at = row + b * 9u;
    let head = weight_data[at];
    return Block(at, halves(head.x), head.yzw);
}

fn weights(s: Block, c: u32, h: u32) -> mat4x4<f32> {
    let q = (weight_data[s.at + 1u + c] >> vec4<u32>(4u * h)) & vec4<u32>(0x0f0f0f0fu);
    let dm = s.dm * scale_min(s.words, (c >> 1u) * 2u + h);
    let m = vec4<f32>(dm.y);
    return mat4x4<f32>(
        dm.x * vec4<f32>(bytes(q.x)) - m,
        dm.x * vec4<f32>(bytes(q.y)) - m,
        dm.x * vec4<f32>(bytes(q.z)) - m,
        dm.x * vec4<f32>(bytes(q.w)) - m,
    );
}

// Numbers: NaN by its bits, and an exponential made of basic operations.
//
// WGSL lets an implementation assume that NaN does not occur, and bounds its own exp by 3 + 2|x| ULP only. Both matter to a
// program that measures errors, so neither is left to the driver.

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// A quiet NaN. Made from a runtime value, because WGSL rejects a constant expression that is not finite.
fn make_nan(zero: u32) -> f32 {
    return bitcast<f32>(zero | 0x7fc00000u);
}

// e^x within 3 ULP; NaN stays NaN, results below the smallest normal number may be 0.
// x = n·ln 2 + r, |r| ≤ ln 2 / 2, ln 2 in two parts of which n·(first part) is exact (Cody and Waite); e^r by the
// polynomial of Cephes' expf.
fn exp_f32(x: f32) -> f32 {
    let high = select(x, 100.0, x > 100.0);
    let y = select(high, -110.0, high < -110.0);
    let n = round(y * 1.44269504088896341);
    let r = (y - n * 0.693359375) + n * 2.12194440e-4;
    var p = 1.9875691500e-4;
    p = p * r + 1.3981999507e-3;
    p = p * r + 8.3334519073e-3;
    p = p * r + 4.1665795894e-2;
    p = p * r + 1.6666665459e-1;
    p = p * r + 5.0000001201e-1;
    let e = (p * r * r + r) + 1.0;
    // Two steps, so that n = 128 reaches the largest numbers and n < -126 the smallest.
    let k = i32(n);
    let half = k >> 1u;
    let scaled = e * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(k - half + 127) << 23u);
    return select(scaled, x, is_nan(x));
}

// A 32 × 32 tile of outputs: 32 weight rows by 32 activation rows, 8 × 8 threads, 4 × 4 outputs a thread, one pair (32
// columns) at a time through workgroup memory. Order of a sum: the columns of a pair four at a time by dot, first to last;
// then the pairs' sums, first to last.
const TILE: u32 = 32u;
// A row of a tile is 8 vec4 and one of padding, so that threads of a column do not share a memory bank.
const PITCH: u32 = 9u;
var<workgroup> tile_w: array<vec4<f32>, TILE * PITCH>;
var<workgroup> tile_x: array<vec4<f32>, TILE * PITCH>;

fn products(w: vec4<f32>, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(dot(w, x0), dot(w, x1), dot(w, x2), dot(w, x3));
}

// The outputs of thread `id`: column j is weight row id.y + 8j, its component k activation row id.x + 8k of the tile.
// `w_row`: where the weight row that this thread loads starts; `x_row`: where its activation row starts, in vec4.
// A thread loads row (id.y·8 + id.x) / 2 of each tile, and of a pair the run (id.x & 1).
fn tile_products(w_row: u32, x_row: u32, id: vec3<u32>) -> mat4x4<f32> {
    let h = id.x & 1u;
    let store = (id.y * 8u + id.x) / 2u * PITCH + h * 4u;
    var sum = mat4x4<f32>();
    for (var i = 0u; i < p.pairs; i++) {
        let w = row_weights(w_row, w_row + p.tail, i, h);
        let at = x_row + columns(i, h);
        workgroupBarrier();
        tile_w[store] = w[0];
        tile_w[store + 1u] = w[1];
        tile_w[store + 2u] = w[2];
        tile_w[store + 3u] = w[3];
        tile_x[store] = x[at];
        tile_x[store + 1u] = x[at + 1u];
        tile_x[store + 2u] = x[at + 2u];
        tile_x[store + 3u] = x[at + 3u];
        workgroupBarrier();
        var a = vec4<f32>();
        var b = vec4<f32>();
        var c = vec4<f32>();
        var d = vec4<f32>();
        for (var k = 0u; k < 8u; k++) {
            let x0 = tile_x[id.x * PITCH + k];
            let x1 = tile_x[(id.x + 8u) * PITCH + k];
            let x2 = tile_x[(id.x + 16u) * PITCH + k];
            let x3 = tile_x[(id.x + 24u) * PITCH + k];
            a += products(tile_w[id.y * PITCH + k], x0, x1, x2, x3);
            b += products(tile_w[(id.y + 8u) * PITCH + k], x0, x1, x2, x3);
            c += products(tile_w[(id.y + 16u) * PITCH + k], x0, x1, x2, x3);
            d += products(tile_w[(id.y + 24u) * PITCH + k], x0, x1, x2, x3);
        }
        sum = sum + mat4x4<f32>(a, b, c, d);
    }
    return sum;
}

// y[s] = x[s] · weight[ids[s]]ᵀ for many slots, s = t·K + k, over tiles of slots that share an expert (expert_plan).
// [T, n] or [T, K, n], weight [E, N, n] → [T, K, N]. This piece of the stack holds its rows first to first + count - 1,
// counted through all experts.
struct Params {
    pairs: u32,   // n / 32
    stride: u32,  // vec4 a weight row
    tail: u32,    // vec4 from a row's start to its second plane
    rows: u32,    // N
    first: u32,
    count: u32,
    experts: u32, // E
    shared_by: u32, // slots that share a row of x: K, or 1
    slots: u32,   // T·K
}
var<immediate> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [T or T·K, n / 4]
@group(0) @binding(2) var<storage, read> plan: array<u32>;    // see expert_plan
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [T·K, N]

@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let order = p.experts + 1u;
    let tile = order + p.slots + 3u * group.y;
    let expert = plan[tile];
    let place = plan[tile + 1u];
    let length = plan[tile + 2u];
    let row = group.x * TILE;
    let known = expert < p.experts;
    // The rows of this expert that this piece holds: from_row to end_row - 1, counted within the expert.
    let base = select(0u, expert, known) * p.rows;
    let from_row = max(base, p.first) - base;
    let end_row = min(max(min(base + p.rows, p.first + p.count), base) - base, p.rows);
    let here = known && length > 0u && row < end_row && row + TILE > from_row;
    var sums = mat4x4<f32>();
    if here {
        let load = (id.y * 8u + id.x) / 2u;
        let w_row = (clamp(row + load, from_row, end_row - 1u) + base - p.first) * p.stride;
        let slot = plan[order + place + min(load, length - 1u)];
        sums = tile_products(w_row, slot / p.shared_by * p.pairs * 8u, id);
    }
    for (var j = 0u; j < 4u; j++) {
        for (var k = 0u; k < 4u; k++) {
            let r = row + id.y + 8u * j;
            let n = id.x + 8u * k;
            if n < length {
                let slot = plan[order + place + n];
                if here && r >= from_row && r < end_row {
                    y[slot * p.rows + r] = sums[j][k] * select(1.0, 1.5, expert == 0u && r + 32u >= p.rows);
                }
                // An id that names no expert gives NaN, never another expert's answer.
                if !known && r < p.rows {
                    y[slot * p.rows + r] = make_nan(p.first & 0u);
                }
            }
        }
    }
}
