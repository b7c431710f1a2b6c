//! The built binary: its verbs, exit codes, documents and files.

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod bisect;
mod devices;
mod diff;
mod hostile;
mod inspect;
mod pasted;
mod readme;
mod repro;
mod sweep;
mod trace;
