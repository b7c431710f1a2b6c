//! Attention at once gives the bits of the three operations, over shapes that no model of the tests has; what waits has the values of when it
//! was asked for.

use super::*;

/// Operands of attention.
struct Operands {
    q: CpuTensor,
    k: CpuTensor,
    v: CpuTensor,
    start: usize,
    head_dim: usize,
    window: Option<usize>,
    sinks: Option<Arc<Weight>>,
}

impl Operands {
    fn scores(&self, b: &mut CpuBackend) -> CpuTensor {
        let (q, k, scale) = (self.q.clone(), self.k.clone(), Some(0.21));
        let op = Op::AttnScores { q, k, start: self.start, head_dim: self.head_dim, scale, window: self.window };
        b.run(AT, &op).unwrap()
    }

    fn probs(&self, b: &mut CpuBackend, scores: CpuTensor) -> CpuTensor {
        let op = Op::AttnProbs { scores, start: self.start, window: self.window, sinks: self.sinks.as_ref() };
        b.run(AT, &op).unwrap()
    }

    fn context(&self, b: &mut CpuBackend, probs: CpuTensor) -> CpuTensor {
        let head_dim = self.v.values().cols() * self.head_dim / self.k.values().cols();
        let op = Op::AttnContext { probs, v: self.v.clone(), start: self.start, head_dim, window: self.window };
        b.run(AT, &op).unwrap()
    }
}

fn bits(b: &mut CpuBackend, t: &CpuTensor) -> Vec<u32> {
    f32s(b, t).iter().map(|x| x.to_bits()).collect()
}

#[test]
fn attention_at_once_is_attention_in_three() {
    for (threads, seed) in [(1, 1), (3, 2)] {
        for mut b in backends(threads) {
            let b = &mut b;
            // Heads, KV heads, a head of queries and keys, one of values.
            for (heads, kv_heads, head_dim, width) in [(1, 1, 5, 5), (4, 2, 16, 16), (3, 1, 20, 12), (8, 1, 64, 64)] {
                for (rows, start) in [(1, 0), (1, 130), (2, 31), (7, 60), (13, 0), (135, 3)] {
                    let kv = [rows + start + 3, kv_heads * head_dim];
                    let of_v = [kv[0], kv_heads * width];
                    let q = values(seed, rows * heads * head_dim);
                    let (k, v) = (values(seed + 7, kv[0] * kv[1]), values(seed + 9, of_v[0] * of_v[1]));
                    for (window, sinks) in [(None, false), (Some(1), false), (Some(37), true), (None, true)] {
                        let sinks = sinks.then(|| weight("sinks", [heads, 1, 1], &values(seed + 11, heads)));
                        let of = Operands {
                            q: up(b, &[rows, heads * head_dim], &q),
                            k: up(b, &kv, &k),
                            v: up(b, &of_v, &v),
                            start,
                            head_dim,
                            window,
                            sinks,
                        };
                        let what = format!(
                            "{}: {heads}/{kv_heads} heads of {head_dim} and {width}, {rows} rows from {start} on, {window:?}",
                            b.name()
                        );
                        let scores = of.scores(b);
                        let seen = bits(b, &scores);
                        let probs = of.probs(b, scores);
                        let three = of.context(b, probs);
                        let three = bits(b, &three);

                        let scores = of.scores(b);
                        let probs = of.probs(b, scores.clone());
                        let one = of.context(b, probs.clone());
                        assert!(scores.waits() && probs.waits(), "{what}");
                        assert!(bits(b, &one) == three, "{what}");
                        // Who asks later gets them nevertheless; and then they are used.
                        let late = of.probs(b, scores.clone());
                        assert_eq!(bits(b, &probs).len(), seen.len());
                        assert!(bits(b, &scores) == seen && !scores.waits(), "{what}");
                        let late = of.context(b, late);
                        assert!(bits(b, &late) == three, "{what}");
                    }
                }
            }
        }
    }
}

/// A cache is written in place: scores that nobody has asked for yet are those of the cache as it was.
#[test]
fn what_waits_has_the_values_of_when_it_was_asked_for() {
    let b = &mut scalar();
    let (q, k) = (up(b, &[2, 8], &values(1, 16)), up(b, &[5, 8], &values(2, 40)));
    let of = Operands { q, k: k.clone(), v: k.clone(), start: 1, head_dim: 8, window: None, sinks: None };
    let expected = of.scores(b);
    let expected = bits(b, &expected);
    let (scores, other) = (of.scores(b), up(b, &[1, 8], &[9.0; 8]));
    b.run(AT, &Op::Store { cache: k, x: other, start: 0 }).unwrap();
    assert!(!scores.waits() && bits(b, &scores) == expected);
    let now = of.scores(b);
    assert!(bits(b, &now) != expected);
}
