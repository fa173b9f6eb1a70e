//! One span per call with the ids it concerns, its outcome in the log, and the client's deadline.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::{Empty, debug};
use tracing::{Instrument as _, Span, debug, info, info_span, warn};

/// Longest text from a request in a log line, characters.
const MAX_LOGGED: usize = 128;
/// Longest that an answer waits for what is good to have done before it.
const MAX_PATIENCE: Duration = Duration::from_secs(10);
/// The same for a client that does not say how long it waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// The sandbox that this call concerns.
pub fn pod(id: &str) {
    record("pod", id);
}

/// The container that this call concerns.
pub fn container(id: &str) {
    record("container", id);
}

/// The image that this call concerns.
pub fn image(name: &str) {
    record("image", name);
}

/// Quoted and cut: it comes from outside.
fn record(field: &'static str, text: &str) {
    let end = text.char_indices().nth(MAX_LOGGED).map_or(text.len(), |(end, _)| end);
    Span::current().record(field, debug(&text[..end]));
}

/// Puts every call into its span.
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// A service whose calls are traced.
#[derive(Debug, Clone)]
pub struct Traced<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Traced<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method: String = request.uri().path().rsplit('/').next().unwrap_or_default().chars().take(64).collect();
        let span = info_span!("rpc", method, pod = Empty, container = Empty, image = Empty);
        // tonic watches the deadline, too, and would answer Cancelled. This timer was made before
        // its, so this answer comes first.
        let deadline = timeout(request.headers()).map(tokio::time::sleep);
        let work = span.in_scope(|| self.inner.call(request));
        let call = async move {
            let mut log = Log { started: Instant::now(), quiet: is_read(&method), done: false };
            let passed = async {
                match deadline {
                    Some(deadline) => deadline.await,
                    None => std::future::pending().await,
                }
            };
            let answer = tokio::select! {
                biased;
                answer = work => answer,
                () = passed => Ok(Status::deadline_exceeded("the deadline of this call passed").into_http()),
            };
            log.finish(answer.as_ref().ok().map(http::Response::headers));
            answer
        };
        Box::pin(call.instrument(span))
    }
}

/// Calls that clients make all the time and that change nothing.
fn is_read(method: &str) -> bool {
    ["List", "Stream", "Version", "Status", "RuntimeConfig", "ImageFsInfo"]
        .iter()
        .any(|start| method.starts_with(start))
        || method.ends_with("Status")
        || method == "ExecSync"
}

/// Logs a call's outcome, also if the client went away first.
struct Log {
    started: Instant,
    quiet: bool,
    done: bool,
}

impl Log {
    fn finish(&mut self, headers: Option<&HeaderMap>) {
        self.done = true;
        let elapsed = self.started.elapsed();
        // An error stands in the headers; a success only in the trailers.
        let status = headers.and_then(Status::from_header_map).filter(|status| status.code() != Code::Ok);
        match status {
            None if self.quiet => debug!(?elapsed, "done"),
            None => info!(?elapsed, "done"),
            Some(status) => {
                let (code, error) = (status.code(), status.message());
                match code {
                    Code::NotFound | Code::Unimplemented | Code::InvalidArgument => {
                        info!(?elapsed, ?code, error, "refused");
                    }
                    _ => warn!(?elapsed, ?code, error, "failed"),
                }
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if !self.done {
            info!(elapsed = ?self.started.elapsed(), "client went away; the work goes on");
        }
    }
}

/// How long an answer may wait for what is good to have done before it: half of the time that the client waits.
pub fn patience(headers: &HeaderMap) -> Duration {
    timeout(headers).map_or(PATIENCE, |limit| (limit / 2).min(MAX_PATIENCE))
}

/// The client's time limit: at most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(parse("999950u"), Some(Duration::from_micros(999_950)));
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "123456789S", "-1S", "1x", "ü"] {
            let mut headers = HeaderMap::new();
            if let Ok(value) = http::HeaderValue::from_bytes(bad.as_bytes()) {
                headers.insert("grpc-timeout", value);
            }
            assert_eq!(timeout(&headers), None, "{bad}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn an_answer_comes_before_its_deadline() {
        for (limit, want) in
            [(Some("2S"), 1000), (Some("90m"), 45), (Some("2M"), 10_000), (Some("soon"), 1000), (None, 1000)]
        {
            let mut headers = HeaderMap::new();
            limit.map(|limit| headers.insert("grpc-timeout", limit.parse().unwrap()));
            assert_eq!(patience(&headers), Duration::from_millis(want), "{limit:?}");
        }
    }

    /// A handler that never answers.
    #[derive(Clone)]
    struct Asleep;

    impl Service<http::Request<()>> for Asleep {
        type Response = http::Response<Body>;
        type Error = std::convert::Infallible;
        type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<()>) -> Self::Future {
            std::future::pending()
        }
    }

    #[tokio::test]
    async fn a_deadline_that_passes_is_told_by_its_code() {
        let request = http::Request::post("/runtime.v1.ImageService/PullImage").header("grpc-timeout", "1m").body(());
        let answer = TraceLayer.layer(Asleep).call(request.unwrap()).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
}
