//! Output that appears whole or not at all: written under a temporary name, synced and renamed.

pub mod dir;
pub mod file;
mod left;
