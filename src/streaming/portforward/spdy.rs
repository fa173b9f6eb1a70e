//! x
use super::*;
pub(super) async fn serve(
    _io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    _connect: Connect,
    _around: &Surroundings,
) {
}
