//! The daemon and its tools.

fn main() -> std::process::ExitCode {
    podwright::cli::main()
}
