//! `quorate-superd SETTINGS.toml`: the endpoint daemon and superserver of a host.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate_superd::run(std::env::args().skip(1))
}
