//! `podwright serve`: configuration, locks, socket, and the way down.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::lock::lock;
use super::logging::LogLevel;
use super::{Failure, Outcome, logging, socket};
use crate::app::App;
use crate::config::{self, Config};
use crate::cri;
use crate::streaming::Server;
use crate::types::chain;

/// Most worker threads; the daemon waits more than it works.
const MAX_WORKERS: usize = 4;
/// Stack of a thread, bytes; only touched pages cost anything.
const STACK: usize = 1 << 20;
/// Most threads for blocking work (unpacking, records).
const MAX_BLOCKING: usize = 64;
/// How long an idle thread for blocking work is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How to run the daemon. Flags win over the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; conf.d/*.toml beside it is read, too [default: /etc/podwright/config.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Path of the CRI socket.
    #[arg(long, value_name = "PATH")]
    address: Option<PathBuf>,
    /// Folder for what survives a reboot.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder for what does not.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// error, warn, info, debug, trace, or a filter.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(args: Args) -> Outcome {
    let config = configure(&args)?;
    let level = logging::start(&config.log.level, config.log.format)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_stack_size(STACK)
        .max_blocking_threads(MAX_BLOCKING)
        .thread_keep_alive(KEEP_ALIVE)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(args, Arc::new(config), level));
    // Drivers of pods may be at work still. Their journals tell the next daemon how far they came.
    runtime.shutdown_background();
    outcome
}

/// Files, then flags, as one more source: a flag is checked as strictly as a key.
fn configure(args: &Args) -> Result<Config, Failure> {
    let mut sources = config::read_sources(args.config.as_deref())?;
    let mut flags = toml::Table::new();
    let mut set = |section: &str, key: &str, value: Option<&str>| {
        if let Some(value) = value {
            let table = flags.entry(section).or_insert_with(|| toml::Table::new().into());
            if let Some(table) = table.as_table_mut() {
                table.insert(key.to_owned(), value.into());
            }
        }
    };
    let text = |path: &Option<PathBuf>| match path.as_ref().map(|path| path.to_str()) {
        Some(None) => Err("a path on the command line is not UTF-8"),
        Some(Some(path)) => Ok(Some(std::path::absolute(path).unwrap_or_default().to_string_lossy().into_owned())),
        None => Ok(None),
    };
    set("server", "address", text(&args.address)?.as_deref());
    set("paths", "root", text(&args.root)?.as_deref());
    set("paths", "state", text(&args.state)?.as_deref());
    set("log", "level", args.log_level.as_deref());
    sources.push(config::Source { file: "command line".into(), text: toml::to_string(&flags)? });
    Ok(config::parse(&sources)?)
}

async fn serve(args: Args, config: Arc<Config>, level: LogLevel) -> Outcome {
    // Signals first: one that comes while the daemon starts must not kill it half-way.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;

    let _root = lock(&config.paths.root, 0o700)?;
    let _state = lock(&config.paths.state, socket::FOLDER_MODE)?;
    // The folders may be older, or somebody else's making.
    fs::set_permissions(&config.paths.root, fs::Permissions::from_mode(0o700))?;
    fs::set_permissions(&config.paths.state, fs::Permissions::from_mode(socket::FOLDER_MODE))?;

    socket::check_free(&config.server.address)?;

    let app = App::build(Arc::clone(&config)).await?;
    let streaming = Server::bind(app.streaming_settings())?;
    let services = app.services(streaming.streaming());
    let (listener, address) = socket::listen(&config.server.address)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let mut server = tokio::spawn(cri::serve(listener, services, async {
        // An error means that the sender is gone, which is as good a reason to stop.
        let _ = stopped.await;
    }));
    let (cut, is_cut) = oneshot::channel::<()>();
    let mut streaming = tokio::spawn(streaming.serve(async {
        let _ = is_cut.await;
    }));
    let reload = tokio::spawn(reload(hangup, args, level));
    info!(address = ?config.server.address, root = ?config.paths.root, state = ?config.paths.state,
        version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "ready");
    notify(&NotifyState::Ready);

    let reason = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        ended = &mut server => {
            ended??;
            return Err("the server stopped by itself".into());
        }
    };
    info!(reason, "stopping; containers live on");
    notify(&NotifyState::Stopping);
    reload.abort();
    // New clients get "no such file" rather than wait for a daemon that is leaving.
    drop(address);
    let _ = stop.send(());
    // Sessions may last for days: they are told to end, and end once that is sent.
    let _ = cut.send(());
    let both = async { tokio::join!(&mut server, &mut streaming) };
    match tokio::time::timeout(config.server.drain_timeout, both).await {
        Ok((calls, sessions)) => {
            calls??;
            sessions?;
        }
        Err(_) => {
            warn!(limit = ?config.server.drain_timeout, "calls and sessions under way did not end in time");
            server.abort();
            streaming.abort();
        }
    }
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// SIGHUP: the log level, from the files as they are now. Nothing else changes in a running daemon.
async fn reload(mut hangup: tokio::signal::unix::Signal, args: Args, level: LogLevel) {
    while hangup.recv().await.is_some() {
        let done = configure(&args).and_then(|config| level.set(&config.log.level).map(|()| config));
        match done {
            Ok(config) => info!(level = config.log.level, "log level read again"),
            Err(error) => warn!(error = chain(&*error), "configuration not read again"),
        }
    }
}

fn notify(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        warn!(%error, "systemd was not told");
    }
}
