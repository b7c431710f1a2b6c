// The ids of the K largest values of each position, of the experts of its best groups: as lib/top_k.wgsl finds them, first the groups, ties
// to the lower one, then the experts. A workgroup makes a position; a thread looks at whole groups. [T, E] → [T, K]
struct Params {
    experts: u32, // E
    k: u32,       // K ≤ used · E / groups
    groups: u32,  // of E / groups ≥ 2 experts each
    used: u32,    // ≤ groups
    two: u32,     // 1: a group's score is the sum of its two largest values, 0: its largest
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> probs: array<f32>;     // [T, E]
@group(0) @binding(1) var<storage, read_write> ids: array<u32>; // [T, K]

// The key of a group's score, of the `size` values from `start` on.
fn group_key(start: u32, size: u32) -> u32 {
    var first = start;
    var second = start + 1u;
    if key_of(probs[second]) > key_of(probs[first]) {
        first = second;
        second = start;
    }
    for (var e = start + 2u; e < start + size; e++) {
        let key = key_of(probs[e]);
        if key > key_of(probs[first]) {
            second = first;
            first = e;
        } else if key > key_of(probs[second]) {
            second = e;
        }
    }
    // A sum with NaN is left to nobody.
    if p.two == 0u || is_nan(probs[first]) {
        return key_of(probs[first]);
    }
    return key_of(probs[first] + probs[second]);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) position: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = position.x * p.experts;
    let size = p.experts / p.groups;
    // The last of the groups that are used.
    var group_least = NONE;
    var group_last = NONE;
    for (var round = 0u; round < p.used; round++) {
        var key = 0u;
        var candidate = NONE;
        for (var g = id.x; g < p.groups; g += THREADS) {
            let this_key = group_key(row + g * size, size);
            let left = round == 0u || this_key < group_least || (this_key == group_least && g > group_last);
            if left && (candidate == NONE || this_key > key) {
                key = this_key;
                candidate = g;
            }
        }
        find_best(id.x, key, candidate);
        group_least = keys[0];
        group_last = best[0];
        workgroupBarrier();
    }
    var last_key = NONE;
    var last_id = NONE;
    for (var round = 0u; round < p.k; round++) {
        var key = 0u;
        var candidate = NONE;
        for (var g = id.x; g < p.groups; g += THREADS) {
            let of_group = group_key(row + g * size, size);
            let used = of_group > group_least || (of_group == group_least && g <= group_last);
            for (var e = g * size; used && e < (g + 1u) * size; e++) {
                let this_key = key_of(probs[row + e]);
                let left = round == 0u || this_key < last_key || (this_key == last_key && e > last_id);
                if left && (candidate == NONE || this_key > key) {
                    key = this_key;
                    candidate = e;
                }
            }
        }
        find_best(id.x, key, candidate);
        last_key = keys[0];
        last_id = best[0];
        workgroupBarrier();
        if id.x == 0u {
            ids[position.x * p.k + round] = last_id;
        }
    }
}
