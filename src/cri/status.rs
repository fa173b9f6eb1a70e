//! Errors of the domain to gRPC statuses: the one place where a class becomes a code.

use tonic::{Code, Status};

use crate::types::{ErrorKind, HasKind, chain};

/// Longest message sent, bytes. Statuses travel in HTTP/2 headers, up to three bytes for each of theirs, and many
/// clients (tonic is one) take no more than 16 KiB of headers.
const MAX_MESSAGE: usize = 4 << 10;

/// The code for a class of errors.
pub const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::Aborted => Code::Aborted,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
    }
}

/// An error, with all its sources, as the status that a client gets.
pub fn status<E: HasKind + 'static>(error: E) -> Status {
    let mut message = chain(&error);
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|&end| message.is_char_boundary(end));
        message.truncate(end.unwrap_or_default());
        message.push('…');
    }
    Status::new(code(error.kind()), message)
}

/// The answer of everything that is not built yet.
pub fn unavailable_yet(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not available in this version of podwright"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::PodError;

    #[test]
    fn class_and_chain_reach_the_client() {
        let failed = PodError::Failed { kind: ErrorKind::Aborted, message: "stage network: stopped".into() };
        let status = super::status(failed);
        assert_eq!((status.code(), status.message()), (Code::Aborted, "stage network: stopped"));
        let missing = super::status(PodError::NotFound { what: "sandbox", id: "abc".into() });
        assert_eq!((missing.code(), missing.message()), (Code::NotFound, "sandbox \"abc\" not found"));
    }

    #[test]
    fn endless_messages_are_cut_between_characters() {
        let status = super::status(PodError::Failed { kind: ErrorKind::Internal, message: "ü".repeat(MAX_MESSAGE) });
        assert!(status.message().len() <= MAX_MESSAGE + 4);
    }
}
