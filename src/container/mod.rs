//! Containers: what is asked ([`config`]), what it becomes ([`spec`]), what is kept ([`record`]) and
//! shown ([`view`]). What *happens* to them happens in their pod's task: `pod::containers`.

pub use crate::types::container as config;

pub mod capabilities;
pub mod devices;
pub mod edits;
pub mod layer_file;
pub mod record;
pub mod resources;
pub mod selinux;
pub mod spec;
pub mod user;
pub mod view;
