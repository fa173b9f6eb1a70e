//! One file per subcommand.

pub mod kubelet;
pub mod run;
