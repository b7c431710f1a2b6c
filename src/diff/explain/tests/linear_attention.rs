//! What only linear attention has, made wrong by hand: the convolution, the norms, the decay, the delta rule, gates, joint weights.

use super::*;
use crate::model::Mixer;

pub fn world_of(family: Family) -> World {
    let moe = FfnShape::Moe(Moe { experts: 8, used: 2, width: 64 });
    World::synthetic(&ModelShape { family, ffn: moe, layers: 2, ..ModelShape::named("tiny").unwrap() })
}

/// Of the operation's operands, one that is not what it is.
fn with<'w>(
    op: &Op<'w, Rc<HostTensor>>,
    operand: usize,
    change: impl Fn(usize, &[f32]) -> f32,
) -> Op<'w, Rc<HostTensor>> {
    let mut operands = 0..;
    op.try_map(|t| {
        if operands.next() != Some(operand) {
            return Ok(t.clone());
        }
        let values = t.to_f32();
        let changed = (0..values.len()).map(|i| change(i, &values)).collect();
        Ok(Rc::new(HostTensor::f32(&t.shape, changed)))
    })
    .unwrap()
}

#[test]
fn the_convolution() {
    let w = world_of(Family::Qwen35);
    let site = Site::layer(0, Stage::LinearAttnConv);
    let Op::Conv { x, weight, .. } = w.op(site) else { unreachable!() };
    let (values, taps) = (x.to_f64(), weight.f32s().map(f64::from).collect::<Vec<f64>>());
    let (channels, kernel) = (x.cols(), weight.cols);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    // The weight of a channel and tap, how many positions later, and what follows the sum.
    let convolved = |tap: &dyn Fn(usize, usize) -> f64, later: isize, after: &dyn Fn(f64) -> f64| {
        let element = |i: usize| {
            let (t, c) = (i / channels, i % channels);
            let term = |j: usize| {
                let position = (t + j + 1) as isize - kernel as isize + later;
                usize::try_from(position).ok().and_then(|p| values.get(p * channels + c)).map_or(0.0, |x| x * tap(c, j))
            };
            after((0..kernel).map(term).sum()) as f32
        };
        HostTensor::f32(&x.shape, (0..x.len()).map(element).collect())
    };
    let own = |c: usize, j: usize| taps[c * kernel + j];
    explained(&w, site, &convolved(&|c, j| own(c, kernel - 1 - j), 0, &silu), "conv-kernel", "reversed");
    explained(&w, site, &convolved(&own, -1, &silu), "conv-kernel", "a position late");
    explained(&w, site, &convolved(&own, 1, &silu), "conv-kernel", "of the future");
    explained(
        &w,
        site,
        &convolved(&|c, j| if j == 0 { 0.0 } else { own(c, j) }, 0, &silu),
        "conv-kernel",
        "the first weight",
    );
    explained(&w, site, &convolved(&|c, j| own((c + 64) % channels, j), 0, &silu), "conv-kernel", "the channel 64 on");
    explained(&w, site, &convolved(&own, 0, &|x| x), "conv-activation", "without its silu");
    explained(&w, site, &convolved(&own, 0, &f64::tanh), "conv-activation", "tanh for silu");

    // The same in a second call, from position 3 on.
    let later = Rc::new(rows(&x, 3));
    let zeros = Rc::new(HostTensor::f32(&x.shape, vec![0.0; x.len()]));
    let wrong = made(&Op::Conv { x: later.clone(), cache: zeros, weight, start: 3 });
    let op = Op::Conv { x: later, cache: x, weight, start: 3 };
    let e = w.explain_op(site, &op, &wrong);
    assert!(e.reproduced() && e.fits[0].id == "conv-state" && e.fits[0].what.contains("begins anew"), "{e}");
}

/// Rows of [T, n] from one on.
fn rows(t: &HostTensor, from: usize) -> HostTensor {
    t.take(0, &(from..t.shape[0]).collect::<Vec<usize>>())
}

#[test]
fn norms_and_decays() {
    let w = world_of(Family::Qwen3Next);
    for (stage, first) in [(Stage::LinearAttnQ, 0), (Stage::LinearAttnK, 64)] {
        let site = Site::layer(0, stage);
        let op = w.op(site);
        let Op::L2Norm { x, heads, head_dim, eps, .. } = &op else { unreachable!() };
        let (heads, head_dim) = (*heads, *head_dim);
        let part: Vec<f32> =
            x.to_f32().chunks(x.cols()).flat_map(|row| row[first..][..heads * head_dim].to_vec()).collect();
        let shape = [x.shape[0], heads * head_dim];
        explained(&w, site, &HostTensor::f32(&shape, part.clone()), "l2-norm", "the head itself");
        // With eps in the mean and, as a kernel that scales what is right, in the sum.
        let d = head_dim as f64;
        let rms = |sum: &dyn Fn(f64) -> f64| {
            let heads = part.chunks(head_dim).flat_map(|head| {
                let root = sum(head.iter().map(|x| f64::from(*x).powi(2)).sum()).sqrt();
                head.iter().map(move |x| (f64::from(*x) * d.sqrt() / root) as f32)
            });
            HostTensor::f32(&shape, heads.collect())
        };
        let eps_of = f64::from(*eps);
        explained(&w, site, &rms(&|sum| sum + d * eps_of), "l2-norm", "RMS norm");
        explained(&w, site, &rms(&|sum| sum + eps_of), "l2-norm", "times √D");
        let whole: Vec<f32> = part
            .chunks(heads * head_dim)
            .flat_map(|row| {
                let length = (row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() + eps_of).sqrt();
                row.iter().map(move |x| (f64::from(*x) / length) as f32)
            })
            .collect();
        explained(&w, site, &HostTensor::f32(&shape, whole), "l2-norm", "over all heads");
    }
    let site = Site::layer(0, Stage::LinearAttnDecay);
    let Op::Decay { x, weight } = w.op(site) else { unreachable!() };
    let rates: Vec<f64> = weight.f32s().map(f64::from).collect();
    let decayed = |x: &HostTensor, of: &dyn Fn(f64, f64) -> f64| {
        let values = x.to_f64().into_iter().zip(rates.iter().cycle()).map(|(x, w)| of(x, *w) as f32);
        HostTensor::f32(&x.shape, values.collect())
    };
    let softplus = |x: f64| x.exp().ln_1p();
    explained(&w, site, &decayed(&x, &|x, w| w * x.exp()), "decay", "exp(x) for softplus");
    explained(&w, site, &decayed(&x, &|x, w| -w * softplus(x)), "decay", "other sign");
    explained(&w, site, &decayed(&x, &|x, _| softplus(x)), "decay", "without the weight");
    explained(&w, site, &decayed(&x, &|x, w| (w * softplus(x)).exp()), "decay", "the decay itself");
    explained(
        &w,
        site,
        &decayed(&w.value(site, Stage::LinearAttnA), &|x, w| w * softplus(x)),
        "decay",
        "without its bias",
    );
}

type Read<'r> = dyn Fn(&[f64], &[f64], &[f64], usize) -> f64 + 'r;

/// A delta rule whose step and reading are given: [key, value] states.
struct Rule<'r> {
    decay: &'r dyn Fn(f64) -> f64,
    /// From what the state holds for the key before and after its decay, v and beta: what is added to it times the key.
    delta: &'r dyn Fn(f64, f64, f64, f64) -> f64,
    /// The value of a column of the output from the state before and after the position, the query, its decay and the column.
    read: &'r Read<'r>,
    key_head: &'r dyn Fn(usize) -> usize,
}

fn held(state: &[f64], x: &[f64], j: usize) -> f64 {
    let d = x.len();
    (0..d).map(|i| state[i * d + j] * x[i]).sum()
}

impl Rule<'_> {
    const OWN: Rule<'static> = Rule {
        decay: &|x| x.exp(),
        delta: &|_, held, v, beta| beta * (v - held),
        read: &|_, state, q, j| held(state, q, j) / (q.len() as f64).sqrt(),
        key_head: &|h| h / 4,
    };

    fn made(&self, op: &Op<'_, Rc<HostTensor>>) -> HostTensor {
        let Op::DeltaRule { q, k, v, decay, beta, head_dim: d, .. } = op else { unreachable!() };
        let (d, heads, tokens, key_cols, v_cols) = (*d, decay.cols(), q.shape[0], q.cols(), v.cols());
        let [q, k, v, decay, beta] = [q, k, v, decay, beta].map(|t| t.to_f64());
        let mut out = vec![0f32; tokens * heads * d];
        for head in 0..heads {
            let mut state = vec![0.0; d * d];
            for t in 0..tokens {
                let before = state.clone();
                let key = (self.key_head)(head);
                let (q, k) = (&q[t * key_cols + key * d..][..d], &k[t * key_cols + key * d..][..d]);
                let fade = (self.decay)(decay[t * heads + head]);
                state.iter_mut().for_each(|x| *x *= fade);
                for j in 0..d {
                    let v = v[t * v_cols + v_cols - (heads - head) * d + j];
                    let delta = (self.delta)(held(&before, k, j), held(&state, k, j), v, beta[t * heads + head]);
                    (0..d).for_each(|i| state[i * d + j] += k[i] * delta);
                }
                for j in 0..d {
                    out[(t * heads + head) * d + j] = (self.read)(&before, &state, q, j) as f32;
                }
            }
        }
        HostTensor::f32(&[tokens, heads * d], out)
    }
}

#[test]
fn the_delta_rule() {
    let w = world_of(Family::Qwen3Next);
    let site = Site::layer(0, Stage::LinearAttnDelta);
    let op = w.op(site);
    let own = Rule::OWN;
    assert_eq!(w.explain(site, &own.made(&op)).tried, 0, "the rule above is the model's");
    let root = |q: &[f64]| (q.len() as f64).sqrt();
    for (rule, id, words) in [
        (Rule { key_head: &|h| h % 2, ..own }, "delta-heads", "key head h mod Hk"),
        (Rule { key_head: &|_| 0, ..own }, "delta-heads", "key head 0"),
        (Rule { decay: &|_| 1.0, ..own }, "delta-decay", "no decay"),
        (Rule { decay: &|x| (-x).exp(), ..own }, "delta-decay", "grows"),
        (Rule { delta: &|before, _, v, beta| beta * (v - before), ..own }, "delta-decay", "before its decay"),
        (Rule { delta: &|_, held, v, _| v - held, ..own }, "delta-beta", "no beta"),
        (Rule { delta: &|_, held, v, beta| beta * v - held, ..own }, "delta-beta", "on the values alone"),
        (Rule { delta: &|_, _, v, beta| beta * v, ..own }, "delta-beta", "whatever the state holds"),
        (Rule { read: &|_, state, q, j| held(state, q, j), ..own }, "delta-scale", "no scale"),
        (Rule { read: &|_, state, q, j| held(state, q, j) / q.len() as f64, ..own }, "delta-scale", "twice"),
        (
            Rule { read: &|before, _, q, j| held(before, q, j) / root(q), ..own },
            "delta-state",
            "before the position's update",
        ),
        (
            Rule {
                read: &|_, state, q, j| (0..q.len()).map(|i| state[j * q.len() + i] * q[i]).sum::<f64>() / root(q),
                ..own
            },
            "delta-state",
            "read by rows",
        ),
    ] {
        explained(&w, site, &rule.made(&op), id, words);
    }
    // Operands of another position or kind.
    let cols = w.value(site, Stage::LinearAttnQ).cols();
    let late = with(&op, 0, |i, q| if i < cols { 0.0 } else { q[i - cols] });
    explained(&w, site, &own.made(&late), "delta-operand", "the query of the position before");
    let heads = w.value(site, Stage::LinearAttnDecay).cols();
    let other = with(&op, 4, |i, beta| beta[i / heads * heads + (i + 1) % heads]);
    explained(&w, site, &own.made(&other), "delta-heads", "the betas of the next head");
    // In a second call, which has lost the state.
    let Op::DeltaRule { q, k, v, decay, beta, head_dim, tiled, .. } = &op else { unreachable!() };
    let [k, v, decay, beta] = [k, v, decay, beta].map(Rc::clone);
    let (q, head_dim, tiled) = (Rc::new(rows(q, 3)), *head_dim, *tiled);
    let second = Op::DeltaRule { q: q.clone(), k, v, decay, beta, start: 3, head_dim, tiled };
    let Op::DeltaRule { k, v, decay, beta, .. } = &second else { unreachable!() };
    let [k, v, decay, beta] = [k, v, decay, beta].map(|t| Rc::new(rows(t, 3)));
    let lost = made(&Op::DeltaRule { q, k, v, decay, beta, start: 0, head_dim, tiled });
    let e = w.explain_op(site, &second, &lost);
    assert!(e.reproduced() && e.fits[0].id == "delta-state" && e.fits[0].what.contains("anew with the call"), "{e}");
}

#[test]
fn gates_and_joint_weights() {
    let w = world_of(Family::Qwen3Next);
    let site = Site::layer(1, Stage::AttnGated);
    let Op::SwiGlu { gate, up, .. } = w.op(site) else { unreachable!() };
    let (d, cols) = (w.model.config.head_dim, gate.cols());
    let (gates, ups) = (gate.to_f64(), up.to_f64());
    let gated = |of: &dyn Fn(f64) -> f64, from: &dyn Fn(usize) -> usize| {
        let values = (0..ups.len()).map(|i| (of(gates[from(i)]) * ups[i]) as f32);
        HostTensor::f32(&up.shape, values.collect())
    };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    explained(&w, site, &gated(&|x| x * sigmoid(x), &|i| i), "activation", "silu for");
    explained(&w, site, &gated(&f64::tanh, &|i| i), "activation", "tanh for");
    explained(&w, site, &gated(&|_| 1.0, &|i| i), "gate-up", "without sigmoid");
    let next = |i: usize| i / cols * cols + (i % cols + d) % cols;
    explained(&w, site, &gated(&sigmoid, &next), "gate-place", "the next head");

    // The file's rows are D of q, then D of the gate; two halves are another matrix.
    let Mixer::Attention(attention) = &w.model.weights.layers[1].mixer else { unreachable!() };
    let (q, gate) = (&attention.q, attention.gate.as_ref().unwrap());
    let row = |joint: usize| {
        let of = [q, gate][joint / d % 2];
        of.row(0, joint / (2 * d) * d + joint % d).to_vec()
    };
    let half = (0..q.rows).flat_map(row).collect();
    let half = Weight::from_vec("half", q.ty, [q.cols, q.rows, 1], half).unwrap();
    let site = Site::layer(1, Stage::QProj);
    let Op::MatMul { x, .. } = w.op(site) else { unreachable!() };
    let wrong = made(&Op::MatMul { x, weight: &half });
    explained(&w, site, &wrong, "joint-rows", "halves");
}
