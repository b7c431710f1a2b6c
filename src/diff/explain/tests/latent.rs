//! Mistakes in latent attention and in groups of experts, computed by hand.

use super::*;
use crate::op::Groups;

/// The order of values, the largest first, of equal ones the first.
fn descending(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order
}

/// Experts of groups that are not kept have a value of 0 in place of −∞, which is more than one below 0.
#[test]
fn groups_masked_by_zero() {
    let Some(w) = World::family_of_repository("deepseek3") else { return };
    let site = Site::layer(1, Stage::RouterIds);
    let Op::RouterTopK { probs, k, groups: Some(groups) } = w.op(site) else { unreachable!() };
    let Groups { count, used, .. } = groups;
    let below: Vec<f32> = probs.to_f32().iter().map(|p| p - 1.5).collect();
    let (experts, size) = (probs.cols(), probs.cols() / count);
    let mut ids = Vec::new();
    for row in below.chunks(experts) {
        let of = |group: &[f32]| descending(group)[..2].iter().map(|e| group[*e]).sum::<f32>();
        let scores: Vec<f32> = row.chunks(size).map(of).collect();
        let kept = &descending(&scores)[..used];
        let masked: Vec<f32> = (0..experts).map(|e| if kept.contains(&(e / size)) { row[e] } else { 0.0 }).collect();
        ids.extend(descending(&masked)[..k].iter().map(|e| *e as u32));
    }
    let op = Op::RouterTopK { probs: Rc::new(HostTensor::f32(&probs.shape, below)), k, groups: Some(groups) };
    let e = w.explain_op(site, &op, &HostTensor::u32(&[probs.shape[0], k], ids));
    assert!(e.reproduced() && e.fits[0].id == "router-groups" && e.fits[0].what.contains("masked by 0"), "{e}");
}

/// Experts in groups of another size.
#[test]
fn another_number_of_groups() {
    let Some(w) = World::family_of_repository("deepseek3") else { return };
    let site = Site::layer(1, Stage::RouterIds);
    let Op::RouterTopK { probs, k, groups: Some(groups) } = w.op(site) else { unreachable!() };
    let other = Groups { count: groups.count - 1, ..groups };
    assert!(
        other.left(probs.cols()) >= k && probs.cols().is_multiple_of(other.count),
        "{groups:?} of {} experts",
        probs.cols()
    );
    let output = made(&Op::RouterTopK { probs, k, groups: Some(other) });
    let words = format!("experts in {} groups where the model has {}", other.count, groups.count);
    let e = w.explain(site, &output);
    let told = e.fits.iter().any(|fit| fit.id == "router-groups" && fit.what == words);
    // Of so few wrong ids it is said besides that they may be told by chance.
    assert!(told, "{words}: {e}");
}

/// A norm of the latent whose mean of squares is that of the latent and the part of a key that follows it, which stays as it is.
#[test]
fn a_mean_of_squares_of_the_whole_row() {
    let Some(w) = World::family_of_repository("deepseek2") else { return };
    let site = Site::layer(1, Stage::KvNorm);
    let Op::RmsNorm { x, weight, eps, keep } = w.op(site) else { unreachable!() };
    let (cols, rank) = (x.cols(), weight.cols);
    assert_eq!(cols, rank + keep);
    let weights: Vec<f64> = weight.f32s().map(f64::from).collect();
    let mut output = Vec::new();
    for row in x.to_f64().chunks(cols) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / cols as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        let of = |(i, x): (usize, &f64)| if i < rank { x * scale * weights[i] } else { *x };
        output.extend(row.iter().enumerate().map(of).map(|x| x as f32));
    }
    explained(&w, site, &HostTensor::f32(&x.shape, output), "norm-group", "the mean of squares of the whole row");
}

/// The part of a key that turns is one for all heads; as a slice for each, head 1 has what follows that of head 0.
#[test]
fn a_slice_of_the_key_for_each_head() {
    let Some(w) = World::family_of_repository("deepseek2") else { return };
    let site = Site::layer(1, Stage::KUp);
    let op = w.op(site);
    let Op::HeadMatMul { x, weight, head_dim, keep: true } = &op else { unreachable!() };
    let (heads, width, rows) = (weight.experts, head_dim - weight.cols, x.to_f32());
    let mut output = made(&op).to_f32();
    let stride = weight.rows + width;
    for (slot, head) in output.chunks_mut(stride).enumerate() {
        let from = slot / heads * head_dim + weight.cols + slot % heads * width;
        for (i, kept) in head[weight.rows..].iter_mut().enumerate() {
            // Behind the end there may be anything.
            *kept = rows.get(from + i).copied().unwrap_or(7.0);
        }
    }
    let output = HostTensor::f32(&[x.shape[0], heads * stride], output);
    explained(&w, site, &output, "head-kept", "a slice for each head");
}
