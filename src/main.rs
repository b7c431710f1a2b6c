use std::process::ExitCode;

fn main() -> ExitCode {
    quiet_drivers();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    keep_memory();
    #[cfg(unix)]
    end_on_lost_pages();
    twinscope::cli::main()
}

/// Mesa's drivers print a line that begins with "error:" when XDG_RUNTIME_DIR is unset, as it is in containers and over ssh.
/// It has nothing to do with the run, and a reader cannot know that.
fn quiet_drivers() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: called first thing in main, while the process has one thread.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
}

/// A run makes the same tensors for every layer, of megabytes each. As glibc has it, one that is dropped goes back to the system, and the next
/// is of new pages, which the kernel clears: up to a third of a prompt's time. Here such memory stays in the process.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_memory() {
    const LARGEST: libc::c_int = 1 << 30;
    // SAFETY: called while the process has one thread; the options are those of glibc's manual, and an allocator that refuses one goes on as it is.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGEST);
        libc::mallopt(libc::M_TOP_PAD, 16 << 20);
    }
}

/// A model is mapped, not read: if another process cuts the file short, or its disk fails, the kernel has no page to give and sends
/// SIGBUS. Nothing can go on then; this ends the process with words and the code of what could not run, not with a crash.
#[cfg(unix)]
fn end_on_lost_pages() {
    extern "C" fn end(_: libc::c_int) {
        const WORDS: &[u8] =
            b"error: a file that is in use, such as the model, has become shorter, or its disk failed\n";
        // SAFETY: both are among the few calls that a handler of a signal may make; the bytes are constant.
        unsafe {
            libc::write(2, WORDS.as_ptr().cast(), WORDS.len());
            libc::_exit(125)
        }
    }
    // SAFETY: called while the process has one thread; the handler is as the kernel calls it, and keeps to what handlers may do.
    unsafe { libc::signal(libc::SIGBUS, end as *const () as libc::sighandler_t) };
}
