//! The HTTP server: connections, requests, tokens, upgrades, and the way down.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::ALLOW;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::activity::Activity;
use super::grant::{Grant, Streaming, Verb, Work};
use super::hangup::Hangup;
use super::lobby::Lobby;
use super::negotiate::{self, refusal};
use super::peer::Peer;
use super::session::Surroundings;
use super::tls::{Tls, TlsError};
use super::{portforward, remotecommand};
use crate::types::{ErrorKind, HasKind};

/// Connections that the kernel holds for us.
const BACKLOG: u32 = 1024;
/// Longest wait for a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest stay of a connection that is not upgraded.
const LOBBY_TIMEOUT: Duration = Duration::from_secs(30);
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Most bytes of a request's line and headers together.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// Pause after an accept that failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the server is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens; port 0: one that is free.
    pub address: SocketAddr,
    /// Files with certificate chain and private key, PEM; `None`: no TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// A session in which nothing was sent either way for this long is ended.
    pub idle_timeout: Duration,
    /// Longest wait for the streams that a client has to open.
    pub creation_timeout: Duration,
    /// A client whose machine has answered nothing for this long is lost.
    pub client_timeout: Duration,
    /// How long, after a process has ended, others are heard that hold its streams.
    pub drain: Duration,
    /// Most sessions at once.
    pub max_sessions: usize,
}

/// The server cannot be.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Its address is no good.
    #[error("streaming.address {address}")]
    Address {
        /// As configured.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its certificate is no good.
    #[error("streaming.tls_cert_file, streaming.tls_key_file")]
    Tls(#[from] TlsError),
}

impl HasKind for BindError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::FailedPrecondition
    }
}

/// A server that listens, and serves nobody yet.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    streaming: Streaming,
    tls: Option<Arc<Tls>>,
    sessions: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// Binds the address and reads the certificate. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The address is taken or not ours; certificate or key cannot be used.
    pub fn bind(settings: Settings) -> Result<Self, BindError> {
        let tls = settings.tls.as_ref().map(|(certificate, key)| Tls::load(certificate, key)).transpose()?;
        let (listener, address) =
            listen(settings.address).map_err(|source| BindError::Address { address: settings.address, source })?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{}", reachable(address));
        debug!(base, "streaming server listens");
        let shared = Shared {
            streaming: Streaming::new(base),
            tls: tls.map(Arc::new),
            sessions: Arc::new(Semaphore::new(settings.max_sessions)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            settings,
        };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Gives out its URLs.
    pub fn streaming(&self) -> Streaming {
        self.shared.streaming.clone()
    }

    /// Serves until `shutdown` is ready; then takes no new connections, tells the sessions to end, and returns when they
    /// have. Whoever cannot wait for that drops the future.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, shared } = self;
        let lobby = Lobby::default();
        // Also when this future is dropped.
        let stop = shared.stop.clone().drop_guard();
        tokio::select! {
            () = accept(&listener, &shared, &lobby) => {}
            () = shutdown => {}
        }
        drop(listener);
        drop(stop);
        lobby.close();
        shared.tasks.close();
        shared.tasks.wait().await;
    }
}

fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// What a client on this machine connects to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn accept(listener: &TcpListener, shared: &Arc<Shared>, lobby: &Lobby) {
    let mut crowded = false;
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let pushed = lobby.enter(connection(Arc::clone(shared), socket));
                if pushed && !crowded {
                    warn!(limit = super::lobby::MOST, "many connections without a request; the oldest are cut");
                }
                crowded = pushed;
            }
            Err(error) => {
                warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, until it ends or has become a session.
async fn connection(shared: Arc<Shared>, socket: TcpStream) {
    let Ok(peer) = prepare(&socket, shared.settings.client_timeout) else { return };
    let whole = async {
        let Some(tls) = shared.tls.clone() else { return http(shared, socket, peer).await };
        let Ok(acceptor) = tokio::task::spawn_blocking(move || tls.acceptor()).await else { return };
        match acceptor.accept(socket).await {
            Ok(stream) => http(shared, stream, peer).await,
            Err(error) => debug!(%error, "no TLS with a streaming client"),
        }
    };
    if tokio::time::timeout(LOBBY_TIMEOUT, whole).await.is_err() {
        debug!("a streaming client took too long");
    }
}

fn prepare(socket: &TcpStream, client_timeout: Duration) -> io::Result<Peer> {
    sockopt::set_tcp_nodelay(socket, true)?;
    Peer::of(socket, client_timeout)
}

async fn http(shared: Arc<Shared>, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, peer: Peer) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        let upgrade = hyper::upgrade::on(&mut request);
        let answer = answer(&shared, &request, upgrade, &peer);
        async { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(%error, "a streaming client's request");
    }
}

/// Answers a request; if it fits, its connection becomes a session. The path holds the token: it is never logged.
fn answer(shared: &Arc<Shared>, request: &Request<Incoming>, upgrade: OnUpgrade, peer: &Peer) -> Response<String> {
    let unknown = || *refusal(StatusCode::NOT_FOUND, "no such session");
    let Some((verb, token)) = Verb::of_path(request.uri().path()) else { return unknown() };
    if !shared.streaming.tokens.is_good(token, |grant| grant.verb == verb) {
        return unknown();
    }
    if ![Method::GET, Method::POST].contains(request.method()) {
        let mut refused = refusal(StatusCode::METHOD_NOT_ALLOWED, "want GET or POST");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        return *refused;
    }
    // A client that asks for what is not there may ask again: only a session uses the token up.
    let begun = match verb {
        Verb::Exec | Verb::Attach => negotiate::upgrade(request.method(), request.headers(), &remotecommand::OFFER)
            .map(|upgrade| {
                let negotiate::Upgrade { protocol, answer } = upgrade;
                (Spoken::Process(protocol), answer)
            }),
        Verb::PortForward => {
            negotiate::upgrade(request.method(), request.headers(), &portforward::OFFER).map(|upgrade| {
                let negotiate::Upgrade { protocol, answer } = upgrade;
                (Spoken::Ports(protocol), answer)
            })
        }
    };
    let (spoken, switching) = match begun {
        Ok(begun) => begun,
        Err(refused) => return *refused,
    };
    let more = match portforward::ports_of_query(request.uri().query().unwrap_or_default()) {
        Ok(ports) => ports,
        Err(reason) => return *refusal(StatusCode::BAD_REQUEST, &reason),
    };
    let Ok(permit) = Arc::clone(&shared.sessions).try_acquire_owned() else {
        warn!(limit = shared.settings.max_sessions, "streaming session refused: too many");
        return *refusal(StatusCode::SERVICE_UNAVAILABLE, "too many streaming sessions");
    };
    let around = match surroundings(shared, peer.clone()) {
        Ok(around) => around,
        Err(error) => {
            warn!(%error, "streaming session refused: its connection cannot be watched");
            return *refusal(StatusCode::SERVICE_UNAVAILABLE, "no session can be had at the moment");
        }
    };
    let Some(mut grant) = shared.streaming.tokens.take(token, |grant| grant.verb == verb) else { return unknown() };
    if let Work::Ports { ports, .. } = &mut grant.work {
        if ports.is_empty() {
            *ports = more;
        }
        if matches!(spoken, Spoken::Ports(protocol) if protocol.wants_ports()) && ports.is_empty() {
            return *refusal(StatusCode::BAD_REQUEST, "want ports, in the request to the CRI or as port= in the URL");
        }
    }
    shared.tasks.spawn(async move {
        let _permit = permit;
        if let Ok(io) = upgrade.await {
            session(TokioIo::new(io), spoken, grant, around).await;
        }
    });
    switching
}

/// What was negotiated.
#[derive(Debug, Clone, Copy)]
enum Spoken {
    Process(remotecommand::Protocol),
    Ports(portforward::Protocol),
}

async fn session(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    spoken: Spoken,
    grant: Grant,
    around: Surroundings,
) {
    let verb = grant.verb.name();
    debug!(verb, ?spoken, "streaming session begins");
    let outcome = match (grant.work, spoken) {
        (Work::Process { wanted, open }, Spoken::Process(protocol)) => {
            remotecommand::serve(io, protocol, wanted, open, &around).await.name()
        }
        (Work::Ports { ports, connect }, Spoken::Ports(protocol)) => {
            portforward::serve(io, protocol, &ports, connect, &around).await;
            "ended"
        }
        _ => "confused",
    };
    debug!(verb, outcome, "streaming session ended");
}

fn surroundings(shared: &Shared, peer: Peer) -> io::Result<Surroundings> {
    Ok(Surroundings {
        hangup: Hangup::watch(&peer)?,
        peer,
        activity: Activity::new(),
        stop: shared.stop.clone(),
        idle_timeout: shared.settings.idle_timeout,
        creation_timeout: shared.settings.creation_timeout,
        drain: shared.settings.drain,
    })
}
