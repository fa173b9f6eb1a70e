//! One small process per pod, started by the daemon and outliving it; see `podwright::monitor`.

use std::process::ExitCode;

use podwright::monitor;
use tracing::error;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let [probe, folder] = arguments.as_slice()
        && probe == podwright::wire::PROBE_ARGUMENT
    {
        return match monitor::engine::probe::user_namespaces(folder.as_ref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                eprintln!("{failure}");
                ExitCode::FAILURE
            }
        };
    }
    let options = match monitor::options::parse(arguments.into_iter()) {
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
