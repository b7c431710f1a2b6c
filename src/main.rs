use std::process::ExitCode;

fn main() -> ExitCode {
    quiet_drivers();
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
