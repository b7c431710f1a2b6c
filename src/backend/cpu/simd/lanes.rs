//! The operations that take time, over the primitives of a level.

/// Writes the operations of a level into its module, each function with the attribute `features`.
///
/// The module has the type `V` of 16 f32 lanes, the functions on it that are called here, and the constants
/// - `ROWS`: how many rows of unpacked weights share the loads of x in a narrow strip; they meet as many tokens as the list `tokens` is
///   long, which is 1, 2, … up to the most that the registers hold;
/// - `TILE`: how many rows meet a wide strip, a multiple of `ROWS`; `registers` lists of how many registers such strips are, 1, 2, …;
/// - `COLUMNS`: how many registers of columns `attn_context` adds up together for one head, `HEADS_COLUMNS` for several.
macro_rules! lane_kernels {
    (#[$features:meta], tokens: [$($tokens:literal),+], registers: [$($registers:literal),+]) => {
        /// Rows of keys or values that all queries of a call pass by together; terms of a sum over rows that are added one after the other.
        const BLOCK: usize = crate::backend::cpu::scalar::BLOCK;
        /// Columns of a wide strip that are asked for before they are read.
        const AHEAD: usize = 8;
        /// Tokens that share the loads of weights.
        pub const STRIPS: Strips = Strips { narrow: [$($tokens),+].len(), registers: [$($registers),+].len() };

        /// Adds the products of a part of `TILE` rows to their sums: see [`AddPart`](crate::backend::cpu::kernels::AddPart).
        #[$features]
        pub fn add_part(w: &[[f32; PART]], columns: Range<usize>, x: Packed<'_>, sums: &mut [Line]) {
            let w: &[[f32; PART]; TILE] = w.try_into().expect("as many rows as the level has in a tile");
            assert!(columns.len() <= PART && columns.end <= x.k() && sums.len() == TILE * x.sums());
            let mut rest = sums;
            for (strip, x) in x.strips() {
                let (sums, others) = rest.split_at_mut(TILE * strip.sums());
                rest = others;
                match (strip.registers, strip.tokens) {
                    $(($registers, _) => wide::<$registers>(w, &x[columns.start * $registers..columns.end * $registers], sums),)+
                    $((0, $tokens) => {
                        let x = &x[columns.start / 16 * $tokens..columns.end.div_ceil(16) * $tokens];
                        narrow::<$tokens>(w, x, sums);
                    })+
                    _ => unreachable!("{strip:?}"),
                }
            }
        }

        /// `x` is [columns, G], `sums` [TILE, G]. In each lane a product after the other, `SUM` of them in a sum of their own.
        #[$features]
        fn wide<const G: usize>(w: &[[f32; PART]; TILE], x: &[Line], sums: &mut [Line]) {
            let x = bytemuck::cast_slice::<Line, [f32; 16]>(x).as_chunks::<G>().0;
            let sums = sums.as_chunks_mut::<G>().0;
            assert!(x.len() <= PART && sums.len() == TILE);
            for (n, x) in x.chunks(SUM).enumerate() {
                wide_sum(w, n * SUM, x, sums);
            }
        }

        /// The sum of products over some columns, of which `first` is the first, for each lane and row. A function of its own, so that the
        /// sums of all columns are added to where they lie: in the caller's loop they would be kept in registers that there are not.
        #[inline(never)]
        #[$features]
        fn wide_sum<const G: usize>(w: &[[f32; PART]; TILE], first: usize, x: &[[[f32; 16]; G]], sums: &mut [[Line; G]]) {
            assert!(first + x.len() <= PART && sums.len() == TILE);
            let mut these = [[splat(0.0); G]; TILE];
            for (i, x) in x.iter().enumerate() {
                let mut tokens = [splat(0.0); G];
                // They come from the second-level cache, once for each tile.
                super::blocks::prefetch(x, AHEAD * size_of_val(x));
                for g in 0..G {
                    tokens[g] = load(&x[g]);
                }
                for r in 0..TILE {
                    // SAFETY: first + i is below PART.
                    let w = splat(unsafe { *w[r].get_unchecked(first + i) });
                    for g in 0..G {
                        these[r][g] = fma(w, tokens[g], these[r][g]);
                    }
                }
            }
            for r in 0..TILE {
                for g in 0..G {
                    let sum = &mut sums[r][g].0;
                    store(sum, add(load(sum), these[r][g]));
                }
            }
        }

        /// `x` is [columns / 16, T], `sums` [TILE / ROWS, T, ROWS]. The part's products to the lanes of a sum of their own.
        #[$features]
        fn narrow<const T: usize>(w: &[[f32; PART]; TILE], x: &[Line], sums: &mut [Line]) {
            let x = bytemuck::cast_slice::<Line, [f32; 16]>(x).as_chunks::<T>().0;
            for (w, sums) in w.as_chunks::<ROWS>().0.iter().zip(sums.chunks_exact_mut(T * ROWS)) {
                let mut rows = [&[][..]; ROWS];
                for r in 0..ROWS {
                    rows[r] = &w[r].as_chunks::<16>().0[..x.len()];
                }
                let mut these = [[splat(0.0); ROWS]; T];
                add_products(rows, x, &mut these);
                for t in 0..T {
                    for r in 0..ROWS {
                        let sum = &mut sums[t * ROWS + r].0;
                        store(sum, add(load(sum), these[t][r]));
                    }
                }
            }
        }

        /// Writes what the sums come to: see [`Results`](crate::backend::cpu::kernels::Results).
        #[$features]
        pub fn results(x: Packed<'_>, sums: &[Line], stride: usize, out: &mut [f32]) {
            assert!(sums.len() == TILE * x.sums());
            let (mut rest, mut out) = (sums, out.chunks_mut(stride).map(|row| row.first_chunk_mut::<TILE>().expect("a tile's row")));
            for (strip, _) in x.strips() {
                let (sums, others) = rest.split_at(TILE * strip.sums());
                rest = others;
                for g in 0..strip.registers {
                    let mut square = [splat(0.0); 16];
                    for r in 0..TILE {
                        square[r] = load(&sums[r * strip.registers + g].0);
                    }
                    for (token, out) in transpose(square).iter().zip(out.by_ref().take(16.min(strip.tokens - g * 16))) {
                        let mut rows = [0.0; 16];
                        store(&mut rows, *token);
                        out.copy_from_slice(&rows[..TILE]);
                    }
                }
                if strip.registers > 0 {
                    continue;
                }
                for (t, out) in out.by_ref().take(strip.tokens).enumerate() {
                    for (group, out) in out.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
                        let mut these = [splat(0.0); ROWS];
                        for r in 0..ROWS {
                            these[r] = load(&sums[(group * strip.tokens + t) * ROWS + r].0);
                        }
                        *out = reduce_all(these);
                    }
                }
            }
        }

        /// Packs a wide strip: see [`PackWide`](crate::backend::cpu::kernels::PackWide).
        #[$features]
        pub fn pack_wide(x: &[&[f32]], registers: usize, out: &mut [Line]) {
            for (register, x) in x.chunks(16).enumerate() {
                let k = x[0].len();
                for first in (0..k).step_by(16) {
                    let mut square = [splat(0.0); 16];
                    for t in 0..x.len() {
                        square[t] = match x[t][first..].first_chunk() {
                            Some(columns) => load(columns),
                            None => load_tail(&x[t][first..]),
                        };
                    }
                    let columns = out[first * registers + register..].iter_mut().step_by(registers);
                    for (column, tokens) in columns.take(k - first).zip(transpose(square)) {
                        store(&mut column.0, tokens);
                    }
                }
            }
        }

        /// Lane j of register i to lane i of register j. Each of four rounds moves a bit of the lane's number to the register's.
        #[inline]
        #[$features]
        fn transpose(mut square: [V; 16]) -> [V; 16] {
            for _ in 0..4 {
                let mut next = [splat(0.0); 16];
                for i in 0..8 {
                    [next[2 * i], next[2 * i + 1]] = interleave(square[i], square[i + 8]);
                }
                square = next;
            }
            square
        }

        /// x · wᵀ for rows of f32: see [`Panel`](crate::backend::cpu::kernels::Panel). Some rows stay in the first-level cache while all
        /// tokens pass by.
        #[$features]
        pub fn panel(w: &[f32], stride: usize, rows: usize, x: Packed<'_>, out: &mut [f32]) {
            assert!(out.len() == rows * x.tokens());
            let k = x.k();
            for first in (0..rows).step_by(BLOCK) {
                let here = BLOCK.min(rows - first);
                for row in first + here..rows.min(first + here + BLOCK) {
                    super::prefetch(bytemuck::cast_slice(&w[row * stride..][..k]), 0);
                }
                let (w, mut token) = (&w[first * stride..], 0);
                for (strip, x) in x.strips() {
                    let out = &mut out[token * rows + first..];
                    token += strip.tokens;
                    match (strip.registers, strip.tokens) {
                        $((0, $tokens) => with_strip::<$tokens>(w, stride, here, k, x, rows, out),)+
                        _ => unreachable!("{strip:?}"),
                    }
                }
            }
        }

        /// `rows` rows against `T` tokens, `[K/16, T]`; `out` is [T, rows], its rows `apart`.
        #[$features]
        fn with_strip<const T: usize>(
            w: &[f32],
            stride: usize,
            rows: usize,
            k: usize,
            x: &[Line],
            apart: usize,
            out: &mut [f32],
        ) {
            let (x, x_tail) = bytemuck::cast_slice::<Line, [f32; 16]>(x).as_chunks::<T>().0.split_at(k / 16);
            let row = |row: usize| &w[row * stride..][..k];
            let grouped = rows - rows % ROWS;
            for first in (0..grouped).step_by(ROWS) {
                let mut w_rows = [&[][..]; ROWS];
                for r in 0..ROWS {
                    w_rows[r] = row(first + r).as_chunks::<16>().0;
                }
                let mut sums = [[splat(0.0); ROWS]; T];
                add_products(w_rows, x, &mut sums);
                for t in 0..T {
                    if let [x] = x_tail {
                        for r in 0..ROWS {
                            sums[t][r] = fma(load(&x[t]), load_tail(&row(first + r)[k / 16 * 16..]), sums[t][r]);
                        }
                    }
                    out[t * apart + first..][..ROWS].copy_from_slice(&reduce_all(sums[t]));
                }
            }
            for at in grouped..rows {
                let (w, w_tail) = row(at).as_chunks::<16>();
                let mut sums = [[splat(0.0)]; T];
                add_products([w], x, &mut sums);
                for t in 0..T {
                    if let [x] = x_tail {
                        sums[t][0] = fma(load(&x[t]), load_tail(w_tail), sums[t][0]);
                    }
                    out[t * apart + at] = reduce(sums[t][0]);
                }
            }
        }

        /// Adds the products of `R` rows with `T` tokens to the lanes of their sums.
        #[inline]
        #[$features]
        fn add_products<const R: usize, const T: usize>(
            w: [&[[f32; 16]]; R],
            x: &[[[f32; 16]; T]],
            total: &mut [[V; R]; T],
        ) {
            let n = x.len();
            assert!(w.iter().all(|w| w.len() == n));
            let mut sums = *total;
            for i in 0..n {
                let mut row = [splat(0.0); R];
                for r in 0..R {
                    // SAFETY: every operand has n chunks.
                    row[r] = load(unsafe { w[r].get_unchecked(i) });
                }
                for t in 0..T {
                    // SAFETY: as above.
                    let x = load(unsafe { &x.get_unchecked(i)[t] });
                    for r in 0..R {
                        sums[t][r] = fma(x, row[r], sums[t][r]);
                    }
                }
            }
            *total = sums;
        }

        /// Σ x².
        #[inline]
        #[$features]
        fn sum_of_squares(x: &[f32]) -> f32 {
            let (chunks, tail) = x.as_chunks::<16>();
            let mut sums = [[splat(0.0)]];
            add_products([chunks], chunks.as_chunks::<1>().0, &mut sums);
            if !tail.is_empty() {
                sums[0][0] = fma(load_tail(tail), load_tail(tail), sums[0][0]);
            }
            reduce(sums[0][0])
        }

        /// See [`scalar::rms_norm`](crate::backend::cpu::scalar::rms_norm).
        #[$features]
        pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
            let mean = sum_of_squares(x) / x.len() as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * weight;
            }
        }

        /// See [`scalar::attn_context`](crate::backend::cpu::scalar::attn_context): the same order of sums, with one
        /// rounding for a multiplication and its addition. All heads pass by some rows of v while these are in the first-level cache; those
        /// that see as many of them share their loads.
        #[$features]
        pub fn attn_context(probs: &[&[f32]], v: &[f32], stride: usize, out: &mut [f32]) {
            let d = out.len() / probs.len().max(1);
            let seen = probs.iter().map(|probs| probs.len()).max().unwrap_or(0);
            out.fill(0.0);
            for first in (0..seen).step_by(BLOCK) {
                for row in first + BLOCK..seen.min(first + 2 * BLOCK) {
                    super::prefetch(bytemuck::cast_slice(&v[row * stride..][..d]), 0);
                }
                let v = &v[first * stride..];
                let here = |head: usize| &probs[head][first.min(probs[head].len())..probs[head].len().min(first + BLOCK)];
                let mut head = 0;
                while head < probs.len() {
                    let all = here(head);
                    let alike = (head..probs.len().min(head + 4)).take_while(|h| here(*h).len() == all.len()).count();
                    let out = &mut out[head * d..];
                    match alike {
                        4 => context::<4, HEADS_COLUMNS>([all, here(head + 1), here(head + 2), here(head + 3)], v, stride, d, out),
                        2 | 3 => context::<2, HEADS_COLUMNS>([all, here(head + 1)], v, stride, d, out),
                        _ => context::<1, COLUMNS>([all], v, stride, d, out),
                    }
                    head += if alike == 3 { 2 } else { alike };
                }
            }
        }

        /// Adds what `H` heads see of a block to their sums, `[H, d]`, `W` registers of columns at a time.
        #[$features]
        fn context<const H: usize, const W: usize>(probs: [&[f32]; H], v: &[f32], stride: usize, d: usize, out: &mut [f32]) {
            if probs[0].is_empty() {
                return;
            }
            let mut column = 0;
            while column + W * 16 <= d {
                let sums = weighted::<H, W>(probs, |s| {
                    let mut row = [splat(0.0); W];
                    for (row, v) in row.iter_mut().zip(v[s * stride + column..][..W * 16].as_chunks::<16>().0) {
                        *row = load(v);
                    }
                    row
                });
                for h in 0..H {
                    let out = out[h * d + column..][..W * 16].as_chunks_mut::<16>().0;
                    for (out, sum) in out.iter_mut().zip(sums[h]) {
                        store(out, add(load(out), sum));
                    }
                }
                column += W * 16;
            }
            while column + 16 <= d {
                let sums = weighted::<H, 1>(probs, |s| [load(&v[s * stride + column..].as_chunks::<16>().0[0])]);
                for h in 0..H {
                    let out = &mut out[h * d + column..].as_chunks_mut::<16>().0[0];
                    store(out, add(load(out), sums[h][0]));
                }
                column += 16;
            }
            if column < d {
                let sums = weighted::<H, 1>(probs, |s| [load_tail(&v[s * stride + column..][..d - column])]);
                for h in 0..H {
                    let out = &mut out[h * d + column..][..d - column];
                    store_tail(out, add(load_tail(out), sums[h][0]));
                }
            }
        }

        /// Σ_s `probs[s]` · row(s) of a block, for `H` rows of probabilities of one length.
        #[inline]
        #[$features]
        fn weighted<const H: usize, const W: usize>(probs: [&[f32]; H], row: impl Fn(usize) -> [V; W]) -> [[V; W]; H] {
            let n = probs[0].len();
            let probs: [&[f32]; H] = std::array::from_fn(|h| &probs[h][..n]);
            let mut sums = [[splat(0.0); W]; H];
            for s in 0..n {
                let row = row(s);
                for h in 0..H {
                    let p = splat(probs[h][s]);
                    for i in 0..W {
                        sums[h][i] = fma(p, row[i], sums[h][i]);
                    }
                }
            }
            sums
        }

        /// e^x within [`exp::ULP`](crate::backend::cpu::simd::exp::ULP): x = n·ln 2 + r, |r| ≤ ln 2 / 2, and a polynomial
        /// in r (Cephes' `expf`).
        #[inline]
        #[$features]
        fn exp(x: V) -> V {
            use crate::backend::cpu::simd::exp::{LN2_HIGH, LN2_LOW, MAX, MIN, POLYNOMIAL};
            // Beyond these bounds the result is 0 or ∞ anyway. A NaN passes: `min` and `max` return their second operand then.
            let x = min(splat(MAX), max(splat(MIN), x));
            let n = round(mul(x, splat(std::f32::consts::LOG2_E)));
            let r = fma(n, splat(-LN2_HIGH), x);
            let r = fma(n, splat(-LN2_LOW), r);
            let mut p = splat(POLYNOMIAL[0]);
            for c in &POLYNOMIAL[1..] {
                p = fma(p, r, splat(*c));
            }
            let p = fma(mul(r, r), p, r);
            times_two_to_the(n, add(p, splat(1.0)))
        }

        /// See [`scalar::softmax`](crate::backend::cpu::scalar::softmax).
        #[$features]
        pub fn softmax(x: &[f32], out: &mut [f32]) {
            let (chunks, tail) = x.as_chunks::<16>();
            let (outs, out_tail) = out.as_chunks_mut::<16>();
            let max = splat(crate::backend::cpu::scalar::max(x));
            let mut total = splat(0.0);
            for (out, x) in outs.iter_mut().zip(chunks) {
                let e = exp(sub(load(x), max));
                total = add(total, e);
                store(out, e);
            }
            if !tail.is_empty() {
                store_tail(out_tail, exp(sub(load_tail(tail), max)));
                total = add(total, load_tail(out_tail)); // the lanes beyond the tail are 0 in this load
            }
            let total = reduce(total);
            for out in out {
                *out /= total;
            }
        }

        /// See [`scalar::swiglu`](crate::backend::cpu::scalar::swiglu).
        #[$features]
        pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
            let f = |gate: V, up: V| mul(div(gate, add(splat(1.0), exp(sub(splat(0.0), gate)))), up);
            let ((gates, gate), (ups, up)) = (gate.as_chunks::<16>(), up.as_chunks::<16>());
            let (outs, out) = out.as_chunks_mut::<16>();
            for ((out, gate), up) in outs.iter_mut().zip(gates).zip(ups) {
                store(out, f(load(gate), load(up)));
            }
            if !out.is_empty() {
                store_tail(out, f(load_tail(gate), load_tail(up)));
            }
        }

        /// See [`scalar::geglu`](crate::backend::cpu::scalar::geglu).
        #[$features]
        pub fn geglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
            use crate::backend::cpu::scalar;
            let f = |g: V, up: V| {
                let cube = mul(mul(g, g), g);
                let twice = mul(splat(scalar::GELU_SCALE), add(g, mul(splat(scalar::GELU_CUBE), cube)));
                mul(div(g, add(splat(1.0), exp(sub(splat(0.0), twice)))), up)
            };
            let ((gates, gate), (ups, up)) = (gate.as_chunks::<16>(), up.as_chunks::<16>());
            let (outs, out) = out.as_chunks_mut::<16>();
            for ((out, gate), up) in outs.iter_mut().zip(gates).zip(ups) {
                store(out, f(load(gate), load(up)));
            }
            if !out.is_empty() {
                store_tail(out, f(load_tail(gate), load_tail(up)));
            }
        }

        /// See [`scalar::multiply_add`](crate::backend::cpu::scalar::multiply_add), in as many sums as a tile has: enough to
        /// keep two units of latency 4 to 6 busy.
        #[$features]
        pub fn multiply_add(rounds: usize) -> (f32, usize) {
            const SUMS: usize = ROWS * STRIPS.narrow;
            let (x, y) = (splat(std::hint::black_box(0.5)), splat(std::hint::black_box(1.0)));
            let mut sums = [splat(0.0); SUMS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = fma(*sum, x, y);
                }
            }
            (reduce(sums.into_iter().fold(splat(0.0), |a, b| add(a, b))), SUMS * 16)
        }

        #[cfg(test)]
        #[$features]
        pub fn exp_in_place(x: &mut [f32; 16]) {
            store(x, exp(load(x)));
        }
    };
}
pub(super) use lane_kernels;
