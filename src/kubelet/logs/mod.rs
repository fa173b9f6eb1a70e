//! Container logs in the CRI format: `TIMESTAMP STREAM TAG CONTENT`.

mod follow;
mod parse;

pub use follow::{LogError, follow, tail};
pub use parse::{Parser, Piece, Stream};
