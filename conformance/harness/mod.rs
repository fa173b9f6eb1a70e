//! What the tests stand on: a node of one's own per test, and the census at its end.

pub mod census;
pub mod cgroups;
pub mod cni;
pub mod config;
pub mod cri;
pub mod daemon;
pub mod dice;
pub mod fake_registry;
pub mod host;
pub mod image;
pub mod logs;
pub mod node;
pub mod registry;
pub mod specs;
pub mod wait;

pub use config::Setup;
pub use dice::Dice;
pub use node::{Ctr, Node, Pod};
pub use specs::{BUSYBOX, HTTPD, args};
pub use wait::{eventually, secs, slowness, volume};

/// For each handler a module of its name, with these tests: functions beside the call, which take the handler's name.
macro_rules! with_each_handler {
    ($tests:tt: $($handler:ident),*) => {
        $($crate::harness::with_each_handler!(@ $handler $tests);)*
    };
    (@ $handler:ident { $($test:ident),* }) => {
        mod $handler {
            $(#[tokio::test]
            async fn $test() {
                super::$test(stringify!($handler)).await;
            })*
        }
    };
}
pub(crate) use with_each_handler;
