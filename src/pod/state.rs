//! The life of a sandbox as a pure state machine.
//!
//! ```text
//!             begin                    ready
//! (nothing) ────────► Creating ──────────────────► Ready
//!                        │ failed, or the daemon      │ stop, reboot, monitor lost
//!                        ▼ died meanwhile             ▼
//!                     Undoing                      Stopping ──► Stopped
//!                        │                            │ remove     │ remove
//!                        ▼                            ▼            ▼
//!                    (nothing) ◄───────────────── Removing ◄───────┘
//! ```
//! A stage is written down before what it stands for is begun, so that after a crash the stage tells
//! what may have happened: everything the stage could do is then undone or done again.

use serde::{Deserialize, Serialize};

use super::view::PodState;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Being made; not visible to clients yet.
    Creating,
    /// Making it failed; being undone.
    Undoing,
    /// Made.
    Ready,
    /// Being stopped.
    Stopping,
    /// Stopped; its record, its containers' records and logs remain.
    Stopped,
    /// Being removed.
    Removing,
}

/// What may happen to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// All phases of the creation are done.
    Made,
    /// A phase failed, or the daemon that created it died.
    Failed,
    /// A client, a reboot or the loss of the monitor ends it.
    Stop,
    /// Everything of it is stopped.
    Stopped,
    /// A client wants it gone.
    Remove,
}

impl Stage {
    /// The stage after `step`; `None`: that cannot happen here.
    pub fn after(self, step: Step) -> Option<Self> {
        Some(match (self, step) {
            (Self::Creating, Step::Made) => Self::Ready,
            (Self::Creating | Self::Undoing, Step::Failed) => Self::Undoing,
            (Self::Ready | Self::Stopping, Step::Stop) => Self::Stopping,
            (Self::Stopped, Step::Stop | Step::Stopped) => Self::Stopped,
            (Self::Stopping, Step::Stopped) => Self::Stopped,
            (Self::Stopped | Self::Removing, Step::Remove) => Self::Removing,
            _ => return None,
        })
    }

    /// What a daemon that finds this stage in a record does, given whether the machine was
    /// rebooted since.
    pub fn recovery(self, rebooted: bool) -> Recovery {
        match self {
            Self::Creating | Self::Undoing => Recovery::Undo,
            Self::Ready if rebooted => Recovery::Stop,
            Self::Ready => Recovery::Adopt,
            Self::Stopping => Recovery::Stop,
            Self::Stopped => Recovery::Keep,
            Self::Removing => Recovery::Remove,
        }
    }

    /// CRI's view; `None`: not shown to clients.
    pub fn shown(self) -> Option<PodState> {
        match self {
            Self::Creating | Self::Undoing => None,
            Self::Ready => Some(PodState::Ready),
            Self::Stopping | Self::Stopped | Self::Removing => Some(PodState::NotReady),
        }
    }
}

/// What to do with a record found at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Connect to its monitor and take over.
    Adopt,
    /// Undo and forget.
    Undo,
    /// Go on stopping.
    Stop,
    /// Nothing.
    Keep,
    /// Go on removing.
    Remove,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEPS: [Step; 5] = [Step::Made, Step::Failed, Step::Stop, Step::Stopped, Step::Remove];

    proptest! {
        #[test]
        fn whatever_happens_a_sandbox_is_never_ready_twice(steps in prop::collection::vec(prop::sample::select(&STEPS[..]), 0..20)) {
            let mut stage = Stage::Creating;
            let mut left_ready = false;
            for step in steps {
                if let Some(next) = stage.after(step) {
                    left_ready |= stage == Stage::Ready && next != Stage::Ready;
                    prop_assert!(!(left_ready && next == Stage::Ready));
                    stage = next;
                }
            }
        }

        #[test]
        fn a_crash_at_any_stage_leads_to_an_end(steps in prop::collection::vec(prop::sample::select(&STEPS[..]), 0..20), rebooted: bool) {
            let stage = steps.into_iter().fold(Stage::Creating, |stage, step| stage.after(step).unwrap_or(stage));
            let shown = stage.shown();
            match stage.recovery(rebooted) {
                Recovery::Undo => prop_assert_eq!(shown, None),
                Recovery::Adopt => prop_assert!(shown == Some(PodState::Ready) && !rebooted),
                Recovery::Stop | Recovery::Keep | Recovery::Remove => prop_assert!(shown.is_some()),
            }
        }
    }

    #[test]
    fn a_running_sandbox_is_not_removed_before_it_is_stopped() {
        assert_eq!(Stage::Ready.after(Step::Remove), None);
        assert_eq!(Stage::Creating.after(Step::Remove), None);
    }
}
