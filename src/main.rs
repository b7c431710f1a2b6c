use std::process::ExitCode;

fn main() -> ExitCode {
    quiet_drivers();
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
