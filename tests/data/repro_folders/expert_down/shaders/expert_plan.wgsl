// Sorts the slots s = t·K + k by expert, so that expert_matmul works on tiles of slots that share one. One workgroup.
// A counting sort whose ranks are the slots' own order: thread e counts and places the slots of expert e, in order, so the
// plan does not depend on timing. An id that names no expert counts as expert E, whose outputs are NaN.
// plan: E + 1 counts, then first places; `slots` slot numbers in sorted order; `tiles` tiles of (expert, first place, length).
struct Params {
    slots: u32,   // T·K
    experts: u32, // E
    tiles: u32,   // room for tiles; the unused ones have length 0
    tile: u32,    // slots a tile
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;        // [T·K]
@group(0) @binding(1) var<storage, read_write> plan: array<u32>; // [E + 1 + slots + 3·tiles]

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_id) id: vec3<u32>) {
    for (var e = id.x; e <= p.experts; e += THREADS) {
        var count = 0u;
        for (var s = 0u; s < p.slots; s++) {
            count += select(0u, 1u, min(ids[s], p.experts) == e);
        }
        plan[e] = count;
    }
    storageBarrier();
    workgroupBarrier();
    let order = p.experts + 1u;
    let tiles = order + p.slots;
    if id.x == 0u {
        var place = 0u;
        var n = 0u;
        for (var e = 0u; e <= p.experts; e++) {
            let count = plan[e];
            plan[e] = place;
            for (var done = 0u; done < count; done += p.tile) {
                plan[tiles + 3u * n] = e;
                plan[tiles + 3u * n + 1u] = place + done;
                plan[tiles + 3u * n + 2u] = min(p.tile, count - done);
                n++;
            }
            place += count;
        }
        for (; n < p.tiles; n++) {
            plan[tiles + 3u * n] = 0u;
            plan[tiles + 3u * n + 1u] = 0u;
            plan[tiles + 3u * n + 2u] = 0u;
        }
    }
    storageBarrier();
    workgroupBarrier();
    for (var e = id.x; e <= p.experts; e += THREADS) {
        var place = plan[e];
        for (var s = 0u; s < p.slots; s++) {
            if min(ids[s], p.experts) == e {
                plan[order + place] = s;
                place++;
            }
        }
    }
}
