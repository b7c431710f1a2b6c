// The ids of the K largest values, largest first, NaN before every number, ties to the lower id. A workgroup makes a position.
// [T, E] → [T, K]. Values compare by an integer key, so that ids are distinct and in range whatever the values are. A round takes
// the best candidate after the last one taken, so nothing needs to be marked.
struct Params {
    experts: u32, // E
    k: u32,       // K ≤ E
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> probs: array<f32>;     // [T, E]
@group(0) @binding(1) var<storage, read_write> ids: array<u32>; // [T, K]

const NONE: u32 = 0xffffffffu;
var<workgroup> keys: array<u32, THREADS>;
var<workgroup> best: array<u32, THREADS>;

// Larger for larger numbers, largest for NaN; -0 and 0 are equal.
fn key_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if is_nan(value) {
        return 0xffffffffu;
    }
    if (bits & 0x80000000u) != 0u {
        return 0x80000000u - (bits & 0x7fffffffu);
    }
    return 0x80000000u + bits;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let lane = id.x;
    var last_key = NONE;
    var last_id = NONE;
    for (var round = 0u; round < p.k; round++) {
        var key = 0u;
        var expert = NONE;
        for (var e = lane; e < p.experts; e += THREADS) {
            let this_key = key_of(probs[group.x * p.experts + e]);
            let left = round == 0u || this_key < last_key || (this_key == last_key && e > last_id);
            if left && (expert == NONE || this_key > key) {
                key = this_key;
                expert = e;
            }
        }
        keys[lane] = key;
        best[lane] = expert;
        for (var step = THREADS / 2u; step > 0u; step /= 2u) {
            workgroupBarrier();
            if lane < step {
                let other = best[lane + step];
                let other_key = keys[lane + step];
                let mine = best[lane];
                if other != NONE && (mine == NONE || other_key > keys[lane] || (other_key == keys[lane] && other < mine)) {
                    keys[lane] = other_key;
                    best[lane] = other;
                }
            }
        }
        workgroupBarrier();
        last_key = keys[0];
        last_id = best[0];
        workgroupBarrier();
        if lane == 0u {
            ids[group.x * p.k + round] = last_id;
        }
    }
}
