//! The `graphtest` command.

fn main() -> std::process::ExitCode {
    graphtest::cli::main()
}
