//! Measures a CRI runtime from outside, over its socket: any runtime, by the same client.
//!
//! `cargo bench --bench cri -- --endpoint unix:///run/podwright/podwright.sock`
//!
//! Nothing here judges a figure: the bench measures and reports. It works only on pods that bear its
//! label, and removes them however it ends.

mod client;
mod error;
mod options;
mod pods;
mod processes;
mod report;
mod samples;
mod scenarios;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::BenchError;
use crate::options::Options;
use crate::report::{Machine, Report};
use crate::scenarios::Bench;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    match bench(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cri bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(options: Options) -> Result<(), BenchError> {
    // What cannot be read is refused before an hour of measuring, not after.
    let peers = options.compare.iter().map(|path| Report::read(path)).collect::<Result<Vec<_>, _>>()?;
    let json = options.json.clone();
    let machine = Machine::read();
    let bench = Bench::connect(options).await?;
    bench.pods.sweep().await?;
    // The first signal lets the calls under way end, so that no pod comes up behind the sweep's back.
    let impatient = async {
        interrupted().await;
        bench.pods.stop();
        interrupted().await;
    };
    let measured = tokio::select! {
        measured = bench.run() => Some(measured),
        () = impatient => None,
    };
    let swept = bench.pods.sweep().await;
    let (scenarios, failed) = measured.ok_or(BenchError::Interrupted)?;
    let report = Report::new(machine, &bench, scenarios);
    print!("{}", report.render(&peers));
    if let Some(path) = json {
        report.write(&path)?;
    }
    swept?;
    failed.map_or(Ok(()), Err)
}

/// Resolves at the next signal that asks the bench to end.
async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
