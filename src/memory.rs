//! The machine's memory: how much there is, and in which pages it comes.

use std::mem::MaybeUninit;

/// What a large page has at most on the machines at hand, and is aligned to.
const LARGE: usize = 2 << 20;

/// Asks for large pages in memory that is about to be written or read for the first time: a hint, which changes no value. The processor
/// remembers where the last few thousand pages are, and the rows of a result lie in one of 4 KiB each. Linux has larger ones for the asking
/// where its `transparent_hugepage/enabled` says `madvise`.
pub(crate) fn prefer_large<T>(memory: &[MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        let start = memory.as_ptr().addr();
        let (first, end) = (start.next_multiple_of(LARGE), start + size_of_val(memory));
        let whole = end.saturating_sub(first) / LARGE * LARGE;
        if whole > 0 {
            // SAFETY: the range lies within `memory`, which is mapped as it can be borrowed; MADV_HUGEPAGE leaves its values as they are. A
            // system without large pages refuses, and goes on as it is.
            unsafe {
                libc::madvise(
                    memory.as_ptr().wrapping_byte_add(first - start).cast_mut().cast(),
                    whole,
                    libc::MADV_HUGEPAGE,
                )
            };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// The memory of this machine, where the system says it.
pub(crate) fn memory_bytes() -> Option<u64> {
    meminfo("MemTotal:")
}

/// Bytes of memory that can be had without swapping: Linux's `MemAvailable`, where the system says it, and what a container leaves of it.
pub(crate) fn available_memory() -> Option<u64> {
    let of_machine = meminfo("MemAvailable:")?;
    let of_container =
        |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/memory.{name}")).ok()?.trim().parse::<u64>().ok();
    let left = of_container("max").zip(of_container("current")).map(|(most, used)| most.saturating_sub(used));
    Some(left.map_or(of_machine, |left| left.min(of_machine)))
}

/// A line of Linux's meminfo, which is in KiB whatever it says.
fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_as_they_are_wherever_memory_begins() {
        let mut memory: Vec<u32> = Vec::with_capacity(5 * LARGE / 4 / size_of::<u32>() * 2);
        prefer_large(memory.spare_capacity_mut());
        memory.extend(0..memory.capacity() as u32);
        for first in [0, 1, 1000] {
            let part = &memory[first..];
            // SAFETY: values that are there are ones that may not be.
            prefer_large(unsafe { std::slice::from_raw_parts(part.as_ptr().cast::<MaybeUninit<u32>>(), part.len()) });
        }
        prefer_large::<u32>(&[]);
        assert!(memory.iter().enumerate().all(|(i, v)| *v == i as u32));
    }
}
