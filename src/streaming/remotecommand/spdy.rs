//! x
use super::*;
pub(super) async fn serve(
    _io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    _version: Version,
    _wanted: Wanted,
    _open: Open,
    _around: &Surroundings,
) -> Ending {
    Ending::ClientGone
}
