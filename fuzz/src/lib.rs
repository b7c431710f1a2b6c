//! The readers of untrusted files under libFuzzer, which looks for inputs that reach code that none before it reached:
//!
//! ```text
//! cargo install cargo-fuzz
//! cd fuzz && cargo run --bin seeds                 # corpus/TARGET, from files of the repository
//! cargo +nightly fuzz run gguf -- -max_len=8192    # or safetensors, capture, npz, aprt, trace
//! cargo +nightly fuzz run model -- -max_len=524288 # the families' files have up to 300 KB
//! cargo +nightly fuzz run repro --features repro
//! ```
//!
//! Without libFuzzer the same functions run over mutations of the same seeds in the package's own tests
//! (`tests/library/fuzzed.rs`), which is what every change has to pass.

pub mod readers;
#[cfg(feature = "repro")]
pub mod repro;

/// What gives the first inputs of a target.
pub type Seeds = fn() -> Vec<Vec<u8>>;

/// The seeds of every target, by its name.
pub const SEEDS: &[(&str, Seeds)] = &[
    ("gguf", readers::gguf_seeds),
    ("model", readers::model_seeds),
    ("safetensors", readers::safetensors_seeds),
    ("capture", readers::capture_seeds),
    ("npz", readers::npz_seeds),
    ("aprt", readers::aprt_seeds),
    ("trace", readers::trace_seeds),
    #[cfg(feature = "repro")]
    ("repro", repro::seeds),
];
