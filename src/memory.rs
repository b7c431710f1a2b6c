//! The machine's memory: how much there is, and in which pages it comes.

use std::mem::MaybeUninit;
use std::sync::OnceLock;

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

/// Asks the system to read a mapped file's bytes from where they are kept, all at once and without waiting: a hint. Without it a thread that comes
/// to them waits for some pages at a time.
pub(crate) fn read_ahead(bytes: &[u8]) {
    #[cfg(unix)]
    if !bytes.is_empty() {
        static PAGE: OnceLock<usize> = OnceLock::new();
        // SAFETY: asks for a number, which every system has.
        let page =
            *PAGE.get_or_init(|| usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1));
        let before = bytes.as_ptr().addr() % page;
        // SAFETY: the pages that `bytes` lie in are mapped, as bytes of each are borrowed; MADV_WILLNEED leaves their values as they are.
        unsafe {
            libc::madvise(
                bytes.as_ptr().wrapping_sub(before).cast_mut().cast(),
                before + bytes.len(),
                libc::MADV_WILLNEED,
            )
        };
    }
    #[cfg(not(unix))]
    let _ = bytes;
}

/// Whether a file of so many bytes is so large that memory may not keep it: more than half of it.
pub(crate) fn may_not_stay(bytes: usize) -> bool {
    static HALF: OnceLock<Option<u64>> = OnceLock::new();
    HALF.get_or_init(|| Some(memory_bytes()? / 2)).is_some_and(|half| bytes as u64 > half)
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
    fn bytes_stay_as_they_are_whichever_are_asked_for() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        file.write_all(&bytes).unwrap();
        // SAFETY: nobody else has the file.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        for part in [0..0, 0..1, 5..4096, 4095..4097, 50_000..100_000, 99_999..100_000] {
            read_ahead(&map[part]);
        }
        read_ahead(&bytes[1..]);
        assert!(map[..] == bytes);
        assert!(!may_not_stay(1) && (memory_bytes().is_none() || may_not_stay(usize::MAX)));
    }

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
