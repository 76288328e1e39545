//! `ReconnectBackoff`, `ConnectRate` and `ConnectRates`: when a connection may try to connect
//! again.
//!
//! Invariant: consecutive attempts that fail come at growing intervals, and those of many clients
//! are spread in time. A session that was of no use counts as a failed attempt: its server takes no
//! writes, or closed it before it answered anything. And a client connects to one server at most
//! ten times in a second, unless a lease is at stake.
//!
//! [`connect`](super::connect) asks both before each attempt.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// When the next connect attempt may start. The pause doubles from 10 ms to 1 s, and each is
/// multiplied by a random factor from 0.25 to 1.
#[derive(Debug)]
pub(crate) struct ReconnectBackoff {
    /// The next pause, before the random factor.
    pause: Duration,
    pub(crate) not_before: Option<Instant>,
    /// When the last session was opened.
    made: Option<Instant>,
    /// When the last attempt started.
    tried: Option<Instant>,
}

/// Whether a lost session had answered anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Answers,
    Nothing,
}

impl Default for ReconnectBackoff {
    fn default() -> Self {
        Self {
            pause: SHORTEST,
            not_before: None,
            made: None,
            tried: None,
        }
    }
}

impl ReconnectBackoff {
    /// Notes that an attempt starts.
    pub(crate) fn tries(&mut self) {
        self.tried = Some(Instant::now());
    }

    /// When the last attempt started.
    pub(crate) fn last_try(&self) -> Option<Instant> {
        self.tried
    }

    /// Notes that an attempt has failed.
    pub(crate) fn failed(&mut self) {
        self.wait(LONGEST);
    }

    /// Notes that the connected server takes no writes. It may still serve reads, so the pauses
    /// stay short (at most 250 ms).
    pub(crate) fn demoted(&mut self) {
        self.settle();
        self.wait(LONGEST_DEMOTED);
    }

    /// Notes that a session is open.
    // The pause is kept: the session may still turn out to be of no use.
    pub(crate) fn made(&mut self) {
        self.not_before = None;
        self.made = Some(Instant::now());
    }

    /// Notes that the session is lost. If it was of use, the next attempt may start at once.
    pub(crate) fn lost(&mut self, had: Use) {
        let had = match self.made {
            Some(at) if at.elapsed() >= SETTLED => Use::Answers,
            _ => had,
        };
        match had {
            Use::Answers => self.start_over(),
            Use::Nothing => self.failed(),
        }
    }

    /// Ends the wait, because there is something new to connect to.
    pub(crate) fn skip(&mut self) {
        self.not_before = None;
    }

    /// Starts over if the session was open for long.
    fn settle(&mut self) {
        if self.made.is_some_and(|at| at.elapsed() >= SETTLED) {
            self.start_over();
        }
    }

    /// Sets the pauses back to the shortest, and ends the wait.
    fn start_over(&mut self) {
        self.pause = SHORTEST;
        self.not_before = None;
    }

    /// Starts a pause of at most `longest`, and doubles the next one.
    fn wait(&mut self, longest: Duration) {
        // `longest` bounds this pause only; the doubling goes on.
        let pause = self.pause.min(longest);
        self.not_before = Some(Instant::now() + pause.mul_f64(rand::random_range(0.25..1.0)));
        self.pause = (self.pause * 2).min(LONGEST);
    }
}

/// Limits how often a client connects to one server, over all of its connections.
#[derive(Debug, Default)]
pub(crate) struct ConnectRate(Mutex<VecDeque<Instant>>);

/// The connect rates of one client, one for each address. A server that is asked for the slot map
/// and also used has one for both.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnectRates(Arc<Mutex<HashMap<Box<str>, Weak<ConnectRate>>>>);

impl ConnectRates {
    /// The rate of the server at `address`.
    pub(crate) fn of(&self, address: &str) -> Arc<ConnectRate> {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = paces.get(address).and_then(Weak::upgrade) {
            return pace;
        }
        // Only here, so that the map does not grow with addresses that are gone.
        paces.retain(|_, pace| pace.strong_count() > 0);
        let pace = Arc::<ConnectRate>::default();
        paces.insert(address.into(), Arc::downgrade(&pace));
        pace
    }
}

impl ConnectRate {
    /// When the next attempt may start. An attempt may need a second connection, to find out why
    /// the first was closed, so this always leaves room for one more.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One less than the limit: room for the second connection of the attempt.
        let place = last.len().checked_sub(MOST_A_SECOND - 1)?;
        last.get(place).map(|first| *first + SECOND)
    }

    /// Notes that a connection is being opened.
    pub(crate) fn note(&self) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back(Instant::now());
        while last.len() > MOST_A_SECOND {
            last.pop_front();
        }
    }
}

/// The first and the longest pause between failed attempts.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);
/// The longest pause while the server takes no writes but may serve reads.
const LONGEST_DEMOTED: Duration = Duration::from_millis(250);

/// A session that was open for this long was of use, even if it answered nothing.
const SETTLED: Duration = Duration::from_secs(10);

/// How many connects to one server a client may make in one second.
const MOST_A_SECOND: usize = 10;
const SECOND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_second_sees_more_than_ten_connections() {
        let pace = ConnectRate::default();
        let mut made: Vec<Instant> = Vec::new();
        for step in 0..500_u64 {
            if pace.not_before().is_none_or(|at| at <= Instant::now()) {
                // Every third attempt needs a second connection.
                for _ in 0..1 + u32::from(step % 3 == 0) {
                    pace.note();
                    made.push(Instant::now());
                }
            }
            tokio::time::advance(Duration::from_millis(1 + step % 17)).await;
        }
        for eleven in made.windows(MOST_A_SECOND + 1) {
            assert!(eleven[MOST_A_SECOND] - eleven[0] >= SECOND);
        }
        assert!(made.len() > 30, "{}", made.len());
    }

    #[test]
    fn a_server_that_is_used_in_two_ways_has_one_pace() {
        let paces = ConnectRates::default();
        let pace = paces.of("10.0.0.1:6379");
        assert!(Arc::ptr_eq(&pace, &paces.clone().of("10.0.0.1:6379")));
        assert!(!Arc::ptr_eq(&pace, &paces.of("10.0.0.2:6379")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_of_use_is_made_again_at_once_and_others_ever_later() {
        let mut backoff = ReconnectBackoff::default();
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            backoff.made();
            backoff.lost(Use::Nothing);
            let pause = backoff.not_before.map(|at| at - Instant::now());
            longest = longest.max(pause.expect("it has to wait"));
        }
        assert!(longest > LONGEST / 4, "{longest:?}");
        backoff.made();
        backoff.lost(Use::Answers);
        assert_eq!(backoff.not_before, None);
    }
}
