//! Products of byte codes with int8 activations, over the primitives of a level.

/// What the products of unpacked codes depend on.
#[derive(Clone, Copy)]
pub(super) struct CodeForm {
    /// Weights that share a scale.
    pub span: usize,
    /// A minimum is taken away from each span.
    pub mins: bool,
    /// Codes are moved up, which the sums begin with.
    pub offset: bool,
    /// Sums of two neighbours' products that are added before they are widened; 0 where nothing is widened, or where codes keep their sign,
    /// whose sums are widened one by one.
    pub fit: usize,
}

/// Writes the products of many tokens into a level's module, each function with the attribute `features`.
///
/// The module has what `lane_kernels` asks for, the type `I` of 16 whole numbers, `to_f32` of it, and `span_dot`: the sums of span `s`,
/// whose codes are at `w` and `codes`, for `R` times 16 rows and `T` tokens. `rows` is the `R` that goes with the most tokens of the list; `moved`
/// says whether all codes are moved up, or only those that then fit into seven bits. Many types' unpacked codes are of the same [`CodeForm`] and
/// have their kernel in common: `fits` is how many sums of two neighbours' products it may have to tell apart.
///
/// The order of sums: each span's products in whole numbers, times its scale; eight spans, first to last; beside them the mins times
/// the codes' sums; their difference times the activations' scale; these, first to last. No term goes through more than 9 + K/256
/// roundings, or 9 + K/128 where a span is 16.
macro_rules! int8_kernels {
    (#[$features:meta], rows: $rows:literal, tokens: [$($tokens:literal),+], moved: $moved:literal, fits: [$($fit:literal),+]) => {
        /// The kernels for a type.
        pub(in crate::backend::cpu::simd) const fn kernels<F: Codes>() -> Int8Kernels {
            Int8Kernels {
                span: span::<F>(),
                least: F::LEAST,
                mins: F::MINS,
                quantize,
                gemv: gemv::<F>,
                unpack: unpack::<F, $moved>,
                panel: const { panel_of(form::<F>()) },
            }
        }

        /// The kernel for codes of a form.
        const fn panel_of(form: CodeForm) -> Int8Panel {
            match (form.span, form.mins, form.offset, form.fit) {
                $(
                    (16, false, false, $fit) => panel::<16, false, false, $fit>,
                    (16, false, true, $fit) => panel::<16, false, true, $fit>,
                    (16, true, false, $fit) => panel::<16, true, false, $fit>,
                    (32, false, false, $fit) => panel::<32, false, false, $fit>,
                    (32, false, true, $fit) => panel::<32, false, true, $fit>,
                    (32, true, false, $fit) => panel::<32, true, false, $fit>,
                )+
                _ => panic!("codes of a form that has no kernel"),
            }
        }

        /// Spans between two roundings of the whole sum.
        const SPANS: usize = 8;
        /// Tokens that share the loads of weights.
        const TOKENS: usize = [$($tokens),+].len();

        /// See [`Int8Panel`](crate::backend::cpu::kernels::Int8Panel).
        #[$features]
        fn panel<const SPAN: usize, const MINS: bool, const OFFSET: bool, const FIT: usize>(w: &CodePanel, rows: usize, x: &Activations, tokens: &[usize], out: &mut [f32]) {
            assert!(out.len() == rows * tokens.len() && w.codes.len() == rows.div_ceil(16) * (x.k / 4));
            for (tokens, out) in tokens.chunks(TOKENS).zip(out.chunks_mut((TOKENS * rows).max(1))) {
                match tokens.len() {
                    $($tokens => strip::<SPAN, MINS, OFFSET, FIT, $tokens>(w, x, std::array::from_fn(|t| tokens[t]), rows, out),)+
                    n => unreachable!("a chunk of {n} tokens"),
                }
            }
        }

        /// All rows against `T` tokens; `out` is [T, rows].
        #[$features]
        fn strip<const SPAN: usize, const MINS: bool, const OFFSET: bool, const FIT: usize, const T: usize>(
            w: &CodePanel,
            x: &Activations,
            tokens: [usize; T],
            rows: usize,
            out: &mut [f32],
        ) {
            let (quads, spans) = (x.k / 4, x.k / SPAN);
            let x = tokens.map(|t| x.row(t));
            let groups = rows.div_ceil(16);
            let group = |g: usize| Group {
                codes: bytemuck::cast_slice(&w.codes[g * quads..][..quads]),
                scales: &w.scales[g * spans..][..spans],
                mins: if MINS { &w.mins[g * spans..][..spans] } else { &[] },
            };
            let mut first = 0;
            while groups - first >= $rows {
                let sums = tile::<SPAN, MINS, OFFSET, FIT, $rows, T>(std::array::from_fn(|r| group(first + r)), &x);
                put::<$rows, T>(sums, first, rows, out);
                first += $rows;
            }
            for g in first..groups {
                put::<1, T>(tile::<SPAN, MINS, OFFSET, FIT, 1, T>([group(g)], &x), g, rows, out);
            }
        }

        /// Writes the sums of `R` groups from group `first` on.
        #[inline]
        #[$features]
        fn put<const R: usize, const T: usize>(sums: [[V; R]; T], first: usize, rows: usize, out: &mut [f32]) {
            for t in 0..T {
                for r in 0..R {
                    let row = (first + r) * 16;
                    match out[t * rows..][..rows][row..].first_chunk_mut::<16>() {
                        Some(out) => store(out, sums[t][r]),
                        None => store_tail(&mut out[t * rows + row..][..rows - row], sums[t][r]),
                    }
                }
            }
        }

        /// Sixteen rows of weights.
        #[derive(Clone, Copy)]
        struct Group<'a> {
            codes: &'a [[u8; 64]],
            scales: &'a [Line],
            mins: &'a [Line],
        }

        /// The sums of `R` groups with `T` tokens.
        #[inline]
        #[$features]
        fn tile<const SPAN: usize, const MINS: bool, const OFFSET: bool, const FIT: usize, const R: usize, const T: usize>(
            w: [Group<'_>; R],
            x: &[CodedRow<'_>; T],
        ) -> [[V; R]; T] {
            let quads = SPAN / 4;
            let spans = x[0].sums.len();
            let mut codes = [&[][..]; T];
            for t in 0..T {
                codes[t] = x[t].codes.as_chunks::<4>().0;
                assert!(x[t].sums.len() == spans && x[t].starts.len() == spans && codes[t].len() == spans * quads);
            }
            for r in 0..R {
                assert!(w[r].codes.len() == spans * quads && w[r].scales.len() == spans);
            }
            let mut total = [[splat(0.0); R]; T];
            for first in (0..spans).step_by(SPANS) {
                let these = first..spans.min(first + SPANS);
                let mut sums = [[splat(0.0); R]; T];
                for s in these.clone() {
                    // SAFETY: every operand has `spans` spans.
                    let whole = unsafe {
                        let (w, codes) = (w.map(|w| w.codes.as_ptr().add(s * quads)), codes.map(|x| x.as_ptr().add(s * quads)));
                        span_dot::<SPAN, OFFSET, FIT, R, T>(w, codes, x, s)
                    };
                    for r in 0..R {
                        let scale = load(&w[r].scales[s].0);
                        for t in 0..T {
                            sums[t][r] = fma(to_f32(whole[t][r]), scale, sums[t][r]);
                        }
                    }
                }
                if MINS {
                    let mut mins = [[splat(0.0); R]; T];
                    for s in these {
                        for r in 0..R {
                            let min = load(&w[r].mins[s].0);
                            for t in 0..T {
                                mins[t][r] = fma(min, splat(x[t].sums[s]), mins[t][r]);
                            }
                        }
                    }
                    for t in 0..T {
                        for r in 0..R {
                            sums[t][r] = sub(sums[t][r], mins[t][r]);
                        }
                    }
                }
                for t in 0..T {
                    let scale = splat(x[t].scales[first * quads * 4 / BLOCK]);
                    for r in 0..R {
                        total[t][r] = fma(sums[t][r], scale, total[t][r]);
                    }
                }
            }
            total
        }
    };
}
pub(super) use int8_kernels;
