//! The fuzz targets of `fuzz/` over mutations of their seeds, without libFuzzer: the same inputs every time, as many as take about a second.
//! `TWINSCOPE_FUZZ_SECONDS=600` goes on for so long.
//!
//! A reader may refuse an input. It may not panic, hang, or hold memory that the input does not pay for; an input that makes it do so is
//! saved.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::gguf_malformed::most_held;
use super::gpu::common::Random;

#[path = "../../fuzz/src/readers.rs"]
mod readers;
#[path = "../../fuzz/src/repro.rs"]
mod repro;

/// What no input takes, on a machine however busy, unless the reader hangs.
const HANGS: Duration = Duration::from_secs(60);

/// Numbers that break arithmetic, as they stand in a binary file and in JSON.
const NUMBERS: [u64; 12] =
    [0, 1, 0x7f, 0xffff, 1 << 20, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, (1 << 63) - 1, 1 << 63, u64::MAX];
const TEXTS: [&str; 8] =
    ["0", "-1", "1e999", "4294967296", "9223372036854775808", "18446744073709551615", "null", "[[[["];

/// `seed` with a few changes, some of them taken from `other`.
fn mutate(r: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + r.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = r.below(bytes.len());
        let end = (at + 1 + r.below(16)).min(bytes.len());
        match r.below(8) {
            0 => bytes[at] = r.next() as u8,
            1 => bytes[at] ^= 1 << r.below(8),
            2 => {
                let number = NUMBERS[r.below(NUMBERS.len())].to_le_bytes();
                let length = [1, 2, 4, 8][r.below(4)].min(bytes.len() - at);
                bytes[at..at + length].copy_from_slice(&number[..length]);
            }
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => bytes.truncate(at),
            6 if !other.is_empty() => {
                let from = r.below(other.len());
                let to = (from + 1 + r.below(64)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => {
                // The number that begins at or after `at`.
                let digit = |b: &u8| b.is_ascii_digit();
                if let Some(first) = bytes[at..].iter().position(digit).map(|n| at + n) {
                    let length = bytes[first..].iter().take_while(|b| digit(b)).count();
                    bytes.splice(first..first + length, TEXTS[r.below(TEXTS.len())].bytes());
                }
            }
        }
    }
    bytes
}

/// Writes down what `target` does wrong on.
fn saved(target: &str, run: u64, input: &[u8]) -> PathBuf {
    let file = std::env::temp_dir().join(format!("twinscope-fuzz-{target}-{run}"));
    std::fs::write(&file, input).unwrap();
    file
}

/// Runs `target` over its seeds and so many `mutations` of them. An input takes at most `times` its own size of memory, and `room`.
fn fuzz(name: &str, target: fn(&[u8]), seeds: Vec<Vec<u8>>, mutations: u64, times: isize, room: isize) {
    let asked = std::env::var("TWINSCOPE_FUZZ_SECONDS").ok().map(|n| n.parse::<u64>().expect("a number of seconds"));
    let began = Instant::now();
    let mut r = Random::new(name.len() as u64 + 77);
    let held_by = |run: u64, input: &[u8]| {
        let ran = catch_unwind(AssertUnwindSafe(|| most_held(|| target(input))));
        let ((), held) = ran.unwrap_or_else(|panic| {
            eprintln!("{name}: run {run} panics: {}", saved(name, run, input).display());
            resume_unwind(panic)
        });
        held
    };
    let (mut most, mut longest) = (0, Duration::ZERO);
    let mut one = |run: u64, input: &[u8]| {
        let start = Instant::now();
        let held = held_by(run, input);
        let took = start.elapsed();
        let limit = times * input.len() as isize + room;
        if held > limit || took > HANGS {
            let (bytes, file) = (input.len(), saved(name, run, input));
            panic!(
                "{name}: run {run}: {bytes} bytes of input: {held} bytes held, of {limit}; {took:?}: {}",
                file.display()
            );
        }
        (most, longest) = (most.max(held), longest.max(took));
    };
    // What is held from the first run on, a directory and its files, is not the reader's.
    held_by(0, &seeds[0]);
    for (run, seed) in seeds.iter().enumerate() {
        one(run as u64, seed);
    }
    let goes_on = |done: u64| match asked {
        Some(seconds) => began.elapsed() < Duration::from_secs(seconds),
        None => done < mutations,
    };
    let mut done = 0;
    while goes_on(done) {
        let (seed, other) = (&seeds[r.below(seeds.len())], &seeds[r.below(seeds.len())]);
        one(seeds.len() as u64 + done, &mutate(&mut r, seed, other));
        done += 1;
    }
    println!("{name}: {} seeds, {done} mutations, at most {most} bytes held and {longest:?}", seeds.len());
}

#[test]
fn gguf() {
    fuzz("gguf", readers::gguf, readers::gguf_seeds(), 11_000, 32, 1 << 20);
}

#[test]
fn model() {
    fuzz("model", readers::model, readers::model_seeds(), 1_500, 32, 1 << 20);
}

#[test]
fn safetensors() {
    fuzz("safetensors", readers::safetensors, readers::safetensors_seeds(), 13_000, 32, 1 << 20);
}

#[test]
fn capture() {
    fuzz("capture", readers::capture, readers::capture_seeds(), 20_000, 64, 1 << 20);
}

#[test]
fn npz() {
    // Deflate makes a thousand bytes of one.
    fuzz("npz", readers::npz, readers::npz_seeds(), 1_000, 4096, 1 << 20);
}

#[test]
fn aprt() {
    fuzz("aprt", readers::aprt, readers::aprt_seeds(), 12_000, 64, 1 << 20);
}

#[test]
fn trace() {
    fuzz("trace", readers::trace, readers::trace_seeds(), 250, 64, 1 << 20);
}

#[test]
fn repro_folder() {
    fuzz("repro", repro::folder, repro::seeds(), 450, 64, 1 << 20);
}
