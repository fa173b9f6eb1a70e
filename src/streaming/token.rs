//! Single-use tokens: what makes a URL good for one session, once, within a minute.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Random bytes in a token: 160 bits, which nobody guesses.
const BYTES: usize = 20;
/// How long a token may be used.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);
/// Most tokens that wait to be used.
pub(super) const MOST: usize = 1024;

type Key = [u8; BYTES];

/// No token was given out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Too many wait to be used.
    #[error("{MOST} streaming URLs wait to be used; each is dropped after {} s", LIFETIME.as_secs())]
    TooMany,
    /// The kernel gave no random bytes.
    #[error("no random bytes for a token")]
    Random,
}

/// Grants that wait for their client.
pub(super) struct Tokens<T>(Mutex<Waiting<T>>);

struct Waiting<T> {
    grants: HashMap<Key, T>,
    /// All keys ever put into `grants` that are not past their time, oldest first; used ones among them.
    ages: VecDeque<(Instant, Key)>,
}

impl<T> Tokens<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Waiting { grants: HashMap::new(), ages: VecDeque::new() }))
    }

    /// Keeps `grant` until it is taken, or its time is over.
    pub(super) fn give(&self, grant: T) -> Result<String, TokenError> {
        self.give_at(grant, Instant::now())
    }

    /// Whether `fits` says yes to the token's grant. Tells nothing but that, and uses nothing up.
    pub(super) fn is_good(&self, token: &str, fits: impl FnOnce(&T) -> bool) -> bool {
        let mut waiting = self.lock();
        waiting.expire(Instant::now());
        key(token).and_then(|key| waiting.grants.get(&key).map(fits)).unwrap_or(false)
    }

    /// Uses the token up, if `fits` says yes.
    pub(super) fn take(&self, token: &str, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        self.take_at(token, fits, Instant::now())
    }

    fn give_at(&self, grant: T, now: Instant) -> Result<String, TokenError> {
        let mut key = [0; BYTES];
        getrandom::fill(&mut key).map_err(|_| TokenError::Random)?;
        let mut waiting = self.lock();
        waiting.expire(now);
        if waiting.grants.len() >= MOST {
            return Err(TokenError::TooMany);
        }
        waiting.grants.insert(key, grant);
        waiting.ages.push_back((now, key));
        Ok(URL_SAFE_NO_PAD.encode(key))
    }

    fn take_at(&self, token: &str, fits: impl FnOnce(&T) -> bool, now: Instant) -> Option<T> {
        let key = key(token)?;
        let mut waiting = self.lock();
        waiting.expire(now);
        if fits(waiting.grants.get(&key)?) { waiting.grants.remove(&key) } else { None }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        // Nothing in here panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Waiting<T> {
    fn expire(&mut self, now: Instant) {
        while let Some((given, key)) = self.ages.front() {
            if now.saturating_duration_since(*given) < LIFETIME {
                break;
            }
            self.grants.remove(key);
            self.ages.pop_front();
        }
        if self.ages.len() > 2 * MOST {
            self.ages.retain(|(_, key)| self.grants.contains_key(key));
        }
    }
}

fn key(token: &str) -> Option<Key> {
    URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any<T>(_: &T) -> bool {
        true
    }

    #[test]
    fn a_token_is_good_once() {
        let tokens = Tokens::new();
        let token = tokens.give(7).unwrap();
        assert!(token.len() >= 22, "at least 128 bits: {token}");
        assert!(tokens.is_good(&token, any));
        assert_eq!(tokens.take(&token, |grant| *grant == 8), None);
        assert_eq!(tokens.take(&token, any), Some(7));
        assert_eq!(tokens.take(&token, any), None);
        assert!(!tokens.is_good(&token, any));
        for wrong in ["", "a", "ü", &token[1..], &format!("{token}A"), &"A".repeat(27)] {
            assert_eq!(tokens.take(wrong, any), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_ends_with_its_minute() {
        let (tokens, start) = (Tokens::new(), Instant::now());
        let token = tokens.give_at(1, start).unwrap();
        assert_eq!(tokens.take_at(&token, any, start + LIFETIME), None);
        let token = tokens.give_at(2, start).unwrap();
        assert_eq!(tokens.take_at(&token, any, start + LIFETIME - Duration::from_millis(1)), Some(2));
    }

    #[test]
    fn their_number_is_bounded_and_old_ones_make_room() {
        let (tokens, start) = (Tokens::new(), Instant::now());
        for n in 0..MOST {
            tokens.give_at(n, start).unwrap();
        }
        assert_eq!(tokens.give_at(0, start), Err(TokenError::TooMany));
        let later = start + LIFETIME;
        let token = tokens.give_at(5, later).unwrap();
        assert_eq!(tokens.lock().grants.len(), 1);
        assert_eq!(tokens.take_at(&token, any, later), Some(5));
        // Used ones do not pile up either.
        for n in 0..3 * MOST {
            let token = tokens.give_at(n, later).unwrap();
            tokens.take_at(&token, any, later).unwrap();
        }
        assert!(tokens.lock().ages.len() <= 2 * MOST + 1);
        tokens.give_at(0, later + LIFETIME).unwrap();
        assert_eq!(tokens.lock().ages.len(), 1);
    }
}
