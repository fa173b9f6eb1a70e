//! Signals by name and number, as images and CRI name them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Linux signal names on x86-64 and arm64, at the index of their number (signal(7)).
const NAMES: [&str; 32] = [
    "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
    "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH",
    "IO", "PWR", "SYS",
];
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The text names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a signal: want a name such as SIGTERM, TERM or SIGRTMIN+3, or a number from 1 to 64")]
pub struct SignalError(String);

/// A signal number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signal(i32);

impl Signal {
    /// SIGKILL.
    pub const KILL: Self = Self(9);
    /// SIGTERM, what containers get when neither image nor config says otherwise.
    pub const TERM: Self = Self(15);

    /// From a number from 1 to 64.
    pub fn from_number(number: i32) -> Option<Self> {
        (1..=RTMAX).contains(&number).then_some(Self(number))
    }

    /// From `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`; case does not matter.
    pub fn parse(text: &str) -> Result<Self, SignalError> {
        let bad = || SignalError(text.chars().take(80).collect());
        let upper = text.trim().to_ascii_uppercase();
        if let Ok(number) = upper.parse() {
            return Self::from_number(number).ok_or_else(bad);
        }
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let offset = |rest: &str, sign: char| match rest {
            "" => Some(0),
            _ => rest.strip_prefix(sign)?.parse::<i32>().ok().filter(|n| (0..=RTMAX - RTMIN).contains(n)),
        };
        let number = match name {
            "CLD" => Some(17),
            "POLL" => Some(29),
            "IOT" => Some(6),
            _ => match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
                (Some(rest), _) => offset(rest, '+').map(|n| RTMIN + n),
                (_, Some(rest)) => offset(rest, '-').map(|n| RTMAX - n),
                _ => NAMES.iter().skip(1).position(|known| *known == name).and_then(|i| i32::try_from(i + 1).ok()),
            },
        };
        number.and_then(Self::from_number).ok_or_else(bad)
    }

    /// The number, 1 to 64.
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::try_from(self.0).ok().and_then(|n| NAMES.get(n)) {
            Some(name) => write!(f, "SIG{name}"),
            None if self.0 < RTMIN => write!(f, "{}", self.0),
            None if self.0 == RTMIN => f.write_str("SIGRTMIN"),
            None if self.0 == RTMAX => f.write_str("SIGRTMAX"),
            None if self.0 <= RTMIN + 15 => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
            None => write!(f, "SIGRTMAX-{}", RTMAX - self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_survives_a_round_trip() {
        for number in (1..=31).chain(34..=64) {
            let signal = Signal(number);
            assert_eq!(Signal::parse(&signal.to_string()), Ok(signal), "{signal}");
        }
    }

    #[test]
    fn images_write_signals_in_many_ways() {
        for (text, want) in
            [("term", 15), ("SIGQUIT", 3), ("9", 9), ("SIGRTMIN+3", 37), ("rtmax-1", 63), ("SIGCLD", 17)]
        {
            assert_eq!(Signal::parse(text).map(Signal::number), Ok(want), "{text}");
        }
        for text in ["", "0", "65", "SIG", "SIGRTMIN+31", "SIGRTMIN-1", "NOPE"] {
            assert!(Signal::parse(text).is_err(), "{text}");
        }
    }
}
