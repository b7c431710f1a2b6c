//! Mistakes of no known kind. Most are in no hypothesis: they must be found all the same, and rightly not be explained.

use super::super::faulty::FaultScope;
use super::super::shader::Shader;
use super::{By, FAULT, Fault, FaultySide};
use crate::diff::locate::PatternKind as P;
use crate::op::{HostTensor, Stage};
use crate::quant::random::Rng;

pub static FAULTS: &[Fault] = &[
    Fault {
        name: "noise",
        what: "values off by random hundredths",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let right = engine.run(op)?;
                let mut rng = Rng::new(1, 0);
                let off = right.to_f32().iter().map(|x| x * (1.0 + 0.01 * rng.normal())).collect();
                Ok(HostTensor::f32(&right.shape, off))
            })
        }),
        subject: FaultySide::Cpu,
        stage: Stage::AttnOut,
        layers: [2, 1],
        graded: true,
        patterns: &[P::WholeTensor, P::Scattered],
        ..FAULT
    },
    Fault {
        name: "positions-exchanged",
        what: "the outputs of positions 2 and 3 are exchanged",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let right = engine.run(op)?;
                let (n, mut values) = (right.cols(), right.to_f32());
                let (front, back) = values.split_at_mut(3 * n);
                front[2 * n..].swap_with_slice(&mut back[..n]);
                Ok(HostTensor::f32(&right.shape, values))
            })
        }),
        subject: FaultySide::Cpu,
        stage: Stage::MoeOut,
        layers: [0, 1],
        patterns: &[P::PositionRange],
        explained: &["misplaced"],
        says: &["rows 2 and 3 exchanged"],
        ..FAULT
    },
    Fault {
        name: "stuck-column",
        what: "a column keeps the value that it had at the first position",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let right = engine.run(op)?;
                let (n, mut values) = (right.cols(), right.to_f32());
                let stuck = values[17];
                values.chunks_exact_mut(n).for_each(|row| row[17] = stuck);
                Ok(HostTensor::f32(&right.shape, values))
            })
        }),
        stage: Stage::FfnNorm,
        layers: [3, 0],
        patterns: &[P::Column],
        explained: &["misplaced"],
        says: &["the first row in every row"],
        ..FAULT
    },
    Fault {
        name: "softer-gate",
        what: "an activation between silu and its square",
        by: By::Shader(&[Shader {
            kernel: "swiglu",
            edits: &[("y[n] = g * sigmoid * up[n];", "y[n] = g * sigmoid * (0.25 + 0.75 * sigmoid) * up[n];")],
        }]),
        stage: Stage::ExpertAct,
        layers: [1, 0],
        patterns: &[P::WholeTensor],
        ..FAULT
    },
    Fault {
        name: "expert-noise",
        what: "one expert's outputs are off by random hundredths, at one position",
        by: By::Operation(|_| {
            Box::new(|engine, op| {
                let right = engine.run(op)?;
                let mut rng = Rng::new(2, 0);
                let off = right.to_f32().iter().map(|x| x * (1.0 + 0.01 * rng.normal())).collect();
                Ok(HostTensor::f32(&right.shape, off))
            })
        }),
        subject: FaultySide::Cpu,
        stage: Stage::ExpertDown,
        layers: [1, 1],
        scope: FaultScope::ExpertOnce,
        patterns: &[P::Expert, P::Position, P::LastPosition],
        ..FAULT
    },
];
