// The ids of the K largest of probs[row], largest first, NaN before every number, ties to the lower id, by a whole workgroup.
// Values compare by an integer key, so that ids are distinct and in range whatever the values are. A round takes the best candidate
// after the last one taken, so nothing needs to be marked. The first thread writes the ids.
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

// The best of each thread's candidate, NONE where it has none, by key and then by the lower id, into the first of `keys` and `best`.
// Who has read these waits for the others before the next.
fn find_best(lane: u32, key: u32, candidate: u32) {
    keys[lane] = key;
    best[lane] = candidate;
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
}

fn top_k(row: u32, lane: u32) {
    var last_key = NONE;
    var last_id = NONE;
    for (var round = 0u; round < p.k; round++) {
        var key = 0u;
        var expert = NONE;
        for (var e = lane; e < p.experts; e += THREADS) {
            let this_key = key_of(probs[row * p.experts + e]);
            let left = round == 0u || this_key < last_key || (this_key == last_key && e > last_id);
            if left && (expert == NONE || this_key > key) {
                key = this_key;
                expert = e;
            }
        }
        find_best(lane, key, expert);
        last_key = keys[0];
        last_id = best[0];
        workgroupBarrier();
        if lane == 0u {
            ids[row * p.k + round] = last_id;
        }
    }
}
