//! One small process per pod, started by the daemon and outliving it; see `podwright::monitor`.

use std::process::ExitCode;

use podwright::monitor;
use tracing::error;

fn main() -> ExitCode {
    let options = match monitor::options::parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("podwright-monitor: {message}");
            return ExitCode::from(2);
        }
    };
    monitor::trace::install();
    match monitor::first_connection().and_then(|first| monitor::run(&options, first)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(pod = %options.pod, %error, "monitor failed");
            ExitCode::FAILURE
        }
    }
}
