//! The built binary: its verbs, exit codes, documents and files.

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod bisect;
mod browser;
mod coverage;
mod devices;
mod diff;
mod hostile;
mod inspect;
mod manners;
mod pasted;
mod poison;
mod provenance;
mod readme;
mod repro;
mod sweep;
mod trace;
