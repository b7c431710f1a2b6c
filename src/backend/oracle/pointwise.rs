//! Norm, rope, residual, activation, and the two operations that only move values.

use std::sync::Arc;

use super::{dequant, matrix, values};
use crate::error::Result;
use crate::op::{Data, GateActivation, HostTensor, Pairing, Rotation, Weight, Yarn};

/// x / √(mean(x²) + eps) · weight over groups of `weight.cols` values, but for the last `keep` columns. [T, G·n + keep] → same.
pub fn rms_norm(x: &HostTensor, weight: &Weight, eps: f64, keep: usize) -> Result<HostTensor> {
    let n = weight.cols;
    let mut w = vec![0.0; n];
    dequant::row(weight.ty, weight.row(0, 0), &mut w)?;
    let mut out = values(x).into_owned();
    let groups = out.chunks_exact_mut(x.cols()).flat_map(|row| {
        let normed = row.len() - keep;
        row[..normed].chunks_exact_mut(n)
    });
    for group in groups {
        let mean = group.iter().map(|x| x * x).sum::<f64>() / n as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        for (x, w) in group.iter_mut().zip(&w) {
            *x = *x * scale * w;
        }
    }
    Ok(HostTensor::f64(&x.shape, out))
}

/// x + weight on every row. [T, N] → same.
pub fn bias(x: &HostTensor, weight: &Weight) -> Result<HostTensor> {
    let mut bias = vec![0.0; weight.cols];
    dequant::row(weight.ty, weight.row(0, 0), &mut bias)?;
    let mut out = values(x).into_owned();
    for row in out.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(&bias).for_each(|(x, b)| *x += b);
    }
    Ok(HostTensor::f64(&x.shape, out))
}

/// x plus the row of its expert. [T, K, N], [T, K], [E, N] → same.
pub fn expert_bias(x: &HostTensor, ids: &HostTensor, weight: &Weight) -> Result<HostTensor> {
    let mut bias = vec![0.0; weight.cols];
    let mut out = values(x).into_owned();
    for (row, id) in out.chunks_exact_mut(weight.cols).zip(ids.ids()) {
        dequant::row(weight.ty, weight.row(0, *id as usize), &mut bias)?;
        row.iter_mut().zip(&bias).for_each(|(x, b)| *x += b);
    }
    Ok(HostTensor::f64(&x.shape, out))
}

/// How much of pair i's frequency YaRN scales: 0 for pairs with at least `beta_fast` turns in the original context, 1 for those with at most
/// `beta_slow`, and a straight line between the pairs next to those two, or, `between`, from where the turns are just so many to where they
/// are so few. For the whole of it, `ramp` is 1.
fn interpolated(yarn: &Yarn, i: usize, head_dim: usize, base: f64) -> f64 {
    // n = context · base^(−2i/D) / 2π turns, solved for i.
    let pair_of = |turns: f64| {
        let wavelength = yarn.context / (std::f64::consts::TAU * turns);
        wavelength.ln() / base.ln() * head_dim as f64 / 2.0
    };
    let (mut low, mut high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
    if !yarn.between {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
    let along = (i as f64 - low) / if high - low > 0.001 { high - low } else { 0.001 };
    1.0 - yarn.ramp * (1.0 - along.clamp(0.0, 1.0))
}

/// Rope: in each head, of its `dims` dimensions from `first` on, which are D here, (i, i + D/2) or (2i, 2i + 1) turn by
/// (start + t) · scale · base^(−2i/D) / factors\[i\]; under YaRN only a part of the frequency is scaled, and what turns is stretched.
/// \[T, heads·D\] → same.
pub fn rope(x: &HostTensor, start: usize, head_dim: usize, rotation: &Rotation<&Arc<Weight>>) -> Result<HostTensor> {
    let (t, cols) = matrix(x);
    let turned = rotation.dims.unwrap_or(head_dim);
    let half = turned / 2;
    let mut factors = vec![1.0; half];
    if let Some(weight) = rotation.factors {
        dequant::row(weight.ty, weight.row(0, 0), &mut factors)?;
    }
    let mut out = values(x).into_owned();
    for token in 0..t {
        for (i, factor) in factors.iter().enumerate() {
            let frequency = rotation.base.powf(-2.0 * i as f64 / turned as f64) / factor;
            let scale = match &rotation.yarn {
                None => rotation.scale,
                Some(yarn) => 1.0 - (1.0 - rotation.scale) * interpolated(yarn, i, turned, rotation.base),
            };
            let angle = (start + token) as f64 * scale * frequency;
            let (first, second) = match rotation.pairing {
                Pairing::Neox => (i, i + half),
                Pairing::Norm => (2 * i, 2 * i + 1),
            };
            let stretch = rotation.yarn.map_or(1.0, |yarn| yarn.magnitude);
            let (sin, cos) = (angle.sin() * stretch, angle.cos() * stretch);
            for head in out[token * cols..][..cols].chunks_exact_mut(head_dim) {
                let head = &mut head[rotation.first..];
                let (a, b) = (head[first], head[second]);
                head[first] = a * cos - b * sin;
                head[second] = b * cos + a * sin;
            }
        }
    }
    Ok(HostTensor::f64(&x.shape, out))
}

/// a + b.
pub fn add(a: &HostTensor, b: &HostTensor) -> HostTensor {
    let sum = values(a).iter().zip(&*values(b)).map(|(a, b)| a + b).collect();
    HostTensor::f64(&a.shape, sum)
}

/// activation(gate) · up; where it is clamped, (1 + up) · gate · sigmoid(1.702·gate) of values within ±7.
pub fn gated(gate: &HostTensor, up: &HostTensor, activation: GateActivation) -> HostTensor {
    let activated = |g: f64| match activation {
        GateActivation::Silu => g / (1.0 + (-g).exp()),
        GateActivation::GeluTanh => {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            // ½(1 + tanh z), which does not cancel for z far below 0.
            g / (1.0 + (-2.0 * z).exp())
        }
        GateActivation::Clamped => {
            let g = if g > 7.0 { 7.0 } else { g };
            g / (1.0 + (-1.702 * g).exp())
        }
        GateActivation::Sigmoid => 1.0 / (1.0 + (-g).exp()),
    };
    let factor = |u: f64| match activation {
        GateActivation::Clamped => 1.0 + if u.is_nan() { u } else { u.clamp(-7.0, 7.0) },
        _ => u,
    };
    let product = values(gate).iter().zip(&*values(up)).map(|(g, u)| activated(*g) * factor(*u)).collect();
    HostTensor::f64(&gate.shape, product)
}

/// x · sigmoid(gate), a gate a row. [T, N], [T, 1] → [T, N].
pub fn sigmoid_gate(x: &HostTensor, gate: &HostTensor) -> HostTensor {
    let (cols, mut out) = (x.cols().max(1), values(x).into_owned());
    for (row, g) in out.chunks_exact_mut(cols).zip(&*values(gate)) {
        row.iter_mut().for_each(|x| *x /= 1.0 + (-g).exp());
    }
    HostTensor::f64(&x.shape, out)
}

/// x over rows start.. of a copy of the cache.
pub fn store(cache: &HostTensor, x: &HostTensor, start: usize) -> HostTensor {
    let mut out = HostTensor::f64(&cache.shape, values(cache).into_owned());
    write_rows(&mut out, x, start);
    out
}

/// Writes the first n columns of x over rows start.. of the f64 tensor `cache` [capacity, n].
pub fn write_rows(cache: &mut HostTensor, x: &HostTensor, start: usize) {
    let n = cache.cols();
    match &mut cache.data {
        Data::F64(all) => {
            let rows = all[start * n..].chunks_exact_mut(n);
            rows.zip(values(x).chunks_exact(x.cols())).for_each(|(row, x)| row.copy_from_slice(&x[..n]));
        }
        other => unreachable!("the oracle's numbers are f64, not {other:?}"),
    }
}

/// Rows start..start + rows of x.
pub fn rows(x: &HostTensor, start: usize, rows: usize) -> HostTensor {
    let n = x.cols();
    HostTensor::f64(&[rows, n], values(x)[start * n..][..rows * n].to_vec())
}
