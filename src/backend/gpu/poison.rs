//! Memory filled with what no kernel computes, and every kernel held to it.
//!
//! Design:
//! - Off unless [`super::GpuOptions`] ask for it. Then an output is filled with [`POISON`] before the kernel that makes it runs, whether
//!   its buffer is new or comes from the pool, and guard words stand after its last element. Bindings reach over the guards, so that a
//!   kernel that goes too far meets them.
//! - After the kernel, of a weight in pieces after the last of these, output and guards come home: an element that still is poison was
//!   left out, a guard that is another was written to. The error names that kernel, before anybody reads what it left.
//! - Poison is a signalling NaN: arithmetic quiets those, so that no computed value has its bits. As an expert's id or a token it is out
//!   of range.
//! - Guards differ from word to word and from tensor to tensor, so that a copy beyond both ends shows. They are NaN to whoever reads
//!   beyond an activation; weights, those of norms among them, and tables have none behind them.
//! - A KV cache is a NaN that is no poison until something is stored: whoever reads rows before that gets NaN, and has not left out
//!   what it wrote.
//! - A binding begins with its output's first element, before which WGSL has no index. Rows of a cache lie in the middle of a buffer:
//!   there the rows around them are the guards, held to what they were before.
//! - Values do not depend on it. It waits for every kernel.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::device::{Bound, Device};
use super::kernels::Access;
use super::texture::{TEXEL_ROW, WordTexture};
use crate::error::{Error, Result};
use crate::op::{Site, unravel};

/// What memory holds until a kernel writes it.
pub const POISON: u32 = 0x7fa5_a5a5;

/// Bytes of guards after a tensor: twice what the widest workgroup that is cut off there writes in a row, 64 threads of `embed` 16 words
/// each. What is written farther off is not seen.
pub const GUARD: u64 = 8192;

/// What a cache holds until something is stored: a signalling NaN as guards are, never [`POISON`].
const UNSTORED: u32 = 0x7fb0_0001;

/// Guards begin at one of so many places of the words that they are copied from.
const PLACES: u64 = 64;

/// Bytes of poison that are copied at a time.
const FILL: u64 = 1 << 20;

/// The state of a device that poisons.
pub struct Poison {
    /// [`FILL`] bytes of [`POISON`].
    words: wgpu::Buffer,
    /// As many of [`UNSTORED`].
    unstored: wgpu::Buffer,
    guards: wgpu::Buffer,
    /// Tensors that were given memory.
    tensors: u64,
    /// Outputs of the kernel that runs.
    watched: Vec<Watched>,
}

/// An output that a kernel is about to write.
struct Watched {
    binding: usize,
    /// The axes of the tensor that it is, or is rows of; none where it is no tensor.
    shape: Vec<usize>,
    buffer: wgpu::Buffer,
    /// Bytes of the buffer: those to write, and with the guards around them.
    output: Range<u64>,
    with_guards: Range<u64>,
    /// The guards in front and behind as they were, then everything as it is afterwards.
    copy: wgpu::Buffer,
}

/// Guard `i` of the words that guards are copied from: a signalling NaN, never [`POISON`].
fn guard(i: u64) -> u32 {
    0x7fb0_0000 | (i as u32).wrapping_mul(40503) & 0xf_ffff
}

impl Poison {
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let filled = |what: &'static str, words: Vec<u32>| {
            let bytes = bytemuck::cast_slice(&words);
            let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            let size = bytes.len() as u64;
            let desc = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
            let buffer = device.create_buffer(&desc);
            queue.write_buffer(&buffer, 0, bytes);
            buffer
        };
        Self {
            words: filled("poison", vec![POISON; FILL as usize / 4]),
            unstored: filled("unstored", vec![UNSTORED; FILL as usize / 4]),
            // A tensor is filled up to a whole vec4 before what a binding has of guards.
            guards: filled("guards", (0..PLACES + (GUARD + 16) / 4).map(guard).collect()),
            tensors: 0,
            watched: Vec::new(),
        }
    }
}

impl Device {
    /// Bytes of memory for a tensor of `bytes`, with its guards.
    pub(super) fn with_guards(&self, bytes: u64) -> u64 {
        if self.poison.is_some() { bytes + GUARD } else { bytes }
    }

    /// What a binding of `size` bytes from `offset` on binds: the guards too.
    pub(super) fn reach(&self, buffer: &wgpu::Buffer, offset: u64, size: u64) -> u64 {
        match self.poison {
            Some(_) => {
                let limit = self.limits.max_storage_buffer_binding_size & !3; // whole words
                (size + GUARD).min(buffer.size() - offset).min(limit.max(size))
            }
            None => size,
        }
    }

    /// Puts guards behind the `words` words of a tensor that is about to be used, new or again; they themselves are poisoned before the
    /// kernel that writes them.
    pub(super) fn guard_tensor(&mut self, buffer: &wgpu::Buffer, words: u64) {
        let Some(poison) = &mut self.poison else { return };
        poison.tensors += 1;
        let (guards, place) = (poison.guards.clone(), poison.tensors % PLACES);
        let bytes = (GUARD + 16).min(buffer.size() - 4 * words);
        self.encoder().copy_buffer_to_buffer(&guards, 4 * place, buffer, 4 * words, bytes);
    }

    /// Fills the `words` words of a cache in which nothing is stored yet.
    pub(super) fn unstore(&mut self, buffer: &wgpu::Buffer, words: u64) {
        self.fill(|poison| &poison.unstored, buffer, 0..4 * words);
    }

    /// Fills a texture that is about to get values, which may be fewer than it holds. Whatever used it before has been submitted:
    /// kernels are waited for.
    pub(super) fn poison_texture(&self, texture: &WordTexture) {
        const ROWS: u64 = 64;
        if self.poison.is_none() {
            return;
        }
        let rows = texture.size() / TEXEL_ROW;
        let words = vec![POISON; (TEXEL_ROW * ROWS.min(rows)) as usize / 4];
        for first in (0..rows).step_by(ROWS as usize) {
            let bytes = TEXEL_ROW * ROWS.min(rows - first);
            texture.write_rows(self, first as u32, &bytemuck::cast_slice(&words)[..bytes as usize]);
        }
    }

    fn fill(&mut self, with: fn(&Poison) -> &wgpu::Buffer, buffer: &wgpu::Buffer, range: Range<u64>) {
        let Some(words) = self.poison.as_ref().map(|poison| with(poison).clone()) else { return };
        for at in range.clone().step_by(FILL as usize) {
            let bytes = FILL.min(range.end - at);
            self.encoder().copy_buffer_to_buffer(&words, 0, buffer, at, bytes);
        }
    }

    /// Before a kernel, or the pieces of one: poisons what it is to write. `bindings` are the last of those that `accesses` are of;
    /// `written` are the words of its output if they are not all that is bound.
    ///
    /// # Errors
    /// `CannotRun` if there is no memory to bring the outputs home.
    pub(super) fn watch(
        &mut self,
        accesses: &[Access],
        bindings: &[Bound<'_>],
        written: Option<Range<u64>>,
    ) -> Result<()> {
        if self.poison.is_none() {
            return Ok(());
        }
        let first = accesses.len() - bindings.len();
        let mut watched = Vec::new();
        for (binding, (access, bound)) in accesses[first..].iter().zip(bindings).enumerate() {
            let (Access::Write, Bound::Buffer { buffer, offset, size, words, shape }) = (access, *bound) else {
                continue;
            };
            let end = offset + self.reach(buffer, offset, size); // where the kernel's reach ends
            let (words, end) = match &written {
                Some(words) => (words.clone(), end.min(offset + 4 * words.end + GUARD)),
                None => (0..words, end),
            };
            let output = offset + 4 * words.start..offset + 4 * words.end;
            if output.is_empty() {
                continue;
            }
            let with_guards = output.start.saturating_sub(GUARD)..end;
            let (front, back) = (with_guards.start..output.start, output.end..with_guards.end);
            let length = |range: &Range<u64>| range.end - range.start;
            let size = length(&front) + length(&back) + length(&with_guards);
            let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
            let copy = self.create_buffer("an output and its guards", size, usage)?;
            self.fill(|poison| &poison.words, buffer, output.clone());
            for (guards, to) in [(&front, 0), (&back, length(&front))] {
                if !guards.is_empty() {
                    self.encoder().copy_buffer_to_buffer(buffer, guards.start, &copy, to, length(guards));
                }
            }
            let (shape, buffer) = (shape.to_vec(), buffer.clone());
            watched.push(Watched { binding: first + binding, shape, buffer, output, with_guards, copy });
        }
        if let Some(poison) = &mut self.poison {
            poison.watched = watched;
        }
        Ok(())
    }

    /// After a kernel, or the pieces of one: holds it to what it was to write.
    ///
    /// # Errors
    /// `Fault` if it left an element out or wrote to a guard; if the device is lost.
    pub(super) fn check_written(&mut self, site: Site, kernel: &str) -> Result<()> {
        let watched = self.poison.as_mut().map(|poison| std::mem::take(&mut poison.watched)).unwrap_or_default();
        if watched.is_empty() {
            return Ok(());
        }
        for Watched { buffer, with_guards, copy, .. } in &watched {
            let bytes = with_guards.end - with_guards.start;
            self.encoder().copy_buffer_to_buffer(buffer, with_guards.start, copy, copy.size() - bytes, bytes);
        }
        self.submit();
        let mapped: Vec<_> = watched
            .iter()
            .map(|output| {
                let mapped = Arc::new(OnceLock::new());
                let tell = mapped.clone();
                output.copy.map_async(wgpu::MapMode::Read, .., move |result| {
                    // The one callback of this mapping.
                    let _ = tell.set(result.map_err(|e| e.to_string()));
                });
                mapped
            })
            .collect();
        self.wait(None)?;
        for (output, mapped) in watched.iter().zip(mapped) {
            let fail = |e: String| self.fail(format!("reading an output and its guards back: {e}"));
            mapped.get().cloned().unwrap_or_else(|| Err("they were not mapped".into())).map_err(fail)?;
            let view = output.copy.get_mapped_range(..).map_err(|e| fail(e.to_string()))?;
            let words: Vec<u32> = view.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
            if let Some(fault) = output.fault(&words) {
                return Err(Error::fault(format!("{}: {site}: kernel {kernel} {fault}", self.info.name)));
            }
        }
        Ok(())
    }
}

impl Watched {
    /// What a kernel did wrong, by the words of [`Self::copy`].
    fn fault(&self, words: &[u32]) -> Option<String> {
        let front = (self.output.start - self.with_guards.start) as usize / 4;
        let back = (self.with_guards.end - self.output.end) as usize / 4;
        let (before, after) = words.split_at(front + back);
        let (output, behind) = after[front..].split_at(after.len() - front - back);
        let left: Vec<usize> = (0..output.len()).filter(|&i| output[i] == POISON).collect();
        let changed = |was: &[u32], is: &[u32]| (0..was.len()).filter(|&i| was[i] != is[i]).collect::<Vec<_>>();
        let in_front = changed(&before[..front], &after[..front]);
        let behind = changed(&before[front..], behind);
        let mut faults = Vec::new();
        if let (Some(&first), Some(&last)) = (left.first(), left.last()) {
            let (n, of) = (left.len(), output.len());
            let place = match n {
                1 => self.place(first),
                _ => format!("{} to {}", self.place(first), self.place(last)),
            };
            faults.push(format!("left {n} of the {of} elements of its output unwritten: {place}"));
        }
        if let Some(first) = behind.first() {
            let n = behind.len();
            faults.push(format!("wrote {n} words past the end of its output, the first of them {first} after it"));
        }
        if let Some(last) = in_front.last() {
            let (n, before) = (in_front.len(), front - last);
            faults.push(format!("wrote {n} words in front of its output, the last of them {before} before it"));
        }
        if faults.is_empty() {
            return None;
        }
        let of = if self.shape.is_empty() { String::new() } else { format!(", of {:?}", self.shape) };
        Some(format!("{} (binding {}{of})", faults.join(", and "), self.binding))
    }

    /// Element `i` of the output, by the axes of the tensor.
    fn place(&self, i: usize) -> String {
        let word = self.output.start as usize / 4 + i;
        if self.shape.is_empty() { format!("word {word}") } else { format!("{:?}", unravel(word, &self.shape)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_and_guards_are_signalling_nans_that_differ() {
        let signals = |word: u32| word >> 22 == 0x7f80_0000 >> 22 && word << 9 != 0;
        assert!(signals(POISON) && (POISON as i32) > 1 << 24, "{POISON:x}");
        let guards: Vec<u32> = (0..PLACES + (GUARD + 16) / 4).map(guard).collect();
        assert!(guards.iter().all(|&word| signals(word) && word != POISON));
        assert!(signals(UNSTORED) && UNSTORED != POISON && !guards.contains(&UNSTORED), "{UNSTORED:x}");
        // Two tensors' guards, and two words of one, are never the same beside each other.
        for distance in 1..PLACES as usize {
            assert!(guards.iter().zip(&guards[distance..]).all(|(a, b)| a != b));
        }
    }
}
