// Reads p.reads vec4, every THREADS-th from `start` on, and does as little else as it can.
fn sum_reads(start: u32) -> u32 {
    var at = start;
    // Four sums, so that a load need not wait for the addition before it.
    var a = vec4<u32>();
    var b = vec4<u32>();
    var c = vec4<u32>();
    var d = vec4<u32>();
    for (var n = 0u; n < p.reads; n += 4u) {
        a += stored(at);
        b += stored(at + THREADS);
        c += stored(at + 2u * THREADS);
        d += stored(at + 3u * THREADS);
        at += 4u * THREADS;
    }
    let sum = (a + b) + (c + d);
    return (sum.x + sum.y) + (sum.z + sum.w);
}
