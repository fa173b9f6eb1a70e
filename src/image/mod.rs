//! References, registries, pulls, and the record of what is here.
//!
//! `pull` is the life of a pull; `registry` speaks with hosts; `unpack` is the border where hostile archives become
//! folders; `layers` owns those folders, `images` the records.

mod auth;
mod error;
mod images;
mod index;
mod layers;
mod manifest;
mod platform;
mod pull;
mod record;
mod reference;
mod registry;
mod unpack;

#[cfg(test)]
mod tests;

pub use auth::Auth;
pub use error::ImageError;
pub use images::{FsInfo, Images, Settings};
pub use layers::LayerHold;
pub use platform::Platform;
pub use record::{Image, ImageConfig};
pub use reference::{Reference, Version};
