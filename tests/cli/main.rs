//! The built binary: its verbs, exit codes, documents and files.

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod bisect;
mod browser;
mod chat;
mod coverage;
mod devices;
mod diff;
mod edited_shaders;
mod exchange;
mod hostile;
mod inspect;
mod manners;
mod not_finite;
mod pasted;
mod poison;
mod probe;
mod provenance;
mod readme;
mod repro;
mod sweep;
mod trace;
