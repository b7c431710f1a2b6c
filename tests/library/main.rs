//! The library: files, models, every backend against goldens and the oracle, tracing and comparing. Tests that need a GPU fail where
//! there is no adapter; they never skip.

#[path = "../common/mod.rs"]
mod common;

mod captures;
mod checked;
mod contracts;
mod dequant;
mod diff_sides;
mod families;
mod fuzzed;
mod gguf_malformed;
mod gpu;
mod house;
mod joint_experts;
mod latent;
mod model_golden;
mod odd_files;
mod op_table;
mod operands;
mod oracle_golden;
mod scales;
mod segments;
mod shaders;
mod synth;
mod tap_purity;
