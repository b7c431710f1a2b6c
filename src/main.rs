fn main() -> std::process::ExitCode {
    twinscope::cli::main()
}
