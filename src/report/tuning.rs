//! What `devices --tune` prints: what was measured, and what was chosen by it.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::table::{lines, table};
use crate::backend::gpu::tuning::Tuning;
use crate::backend::gpu::tuning::file::TuningFile;
use crate::text::printable;

/// For people: a line for each measured case, then the limits beside the built-in ones.
pub fn render_tuning(file: &TuningFile) -> String {
    let mut out = String::new();
    let of = &file.adapter;
    let [least, most] = of.subgroup_sizes;
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{} · {} · subgroups of {least} to {most}\n", printable(&of.name), printable(&of.driver));
    let mut measured =
        table(&["product", "type", "weight", "positions", "matrix-vector", "tiled", "faster"], &[3, 4, 5]);
    for s in &file.measured {
        let micros = |seconds: f64| format!("{:.1} µs", seconds * 1e6);
        let faster = if s.vector_seconds <= s.tiled_seconds { "matrix-vector" } else { "tiled" };
        let used = s.used.map_or(String::new(), |used| format!(", {used} used"));
        measured.add_row(vec![
            s.op.clone(),
            s.ty.clone(),
            format!("{:?}{used}", s.dims),
            s.positions.to_string(),
            micros(s.vector_seconds),
            micros(s.tiled_seconds),
            faster.into(),
        ]);
    }
    out += &lines(&measured);
    let built_in = Tuning::built_in(of.lanes);
    let types = |all: &BTreeMap<String, usize>| -> String {
        all.iter().map(|(ty, limit)| format!(" · {ty} {limit}")).collect()
    };
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line("\nmatrix-vector kernels run up to".into());
    for (name, is, was) in [
        ("mat_mul", &file.tuning.mat_mul, &built_in.mat_mul),
        ("head_mat_mul", &file.tuning.head_mat_mul, &built_in.head_mat_mul),
    ] {
        line(format!("  {name:14}  {} positions{} (built-in {})", is.positions, types(&is.types), was.positions));
    }
    let (is, was) = (&file.tuning.expert_mat_mul, &built_in.expert_mat_mul);
    let name = "expert_mat_mul";
    line(format!(
        "  {name:14}  {} positions, or rows of an expert: {}{} (built-in {} positions)",
        is.positions,
        is.rows,
        types(&is.types),
        was.positions
    ));
    out
}
