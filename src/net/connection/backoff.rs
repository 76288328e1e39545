//! `ReconnectBackoff`, `ConnectRate` and `ConnectRates`: when a link may try to connect again.
//!
//! Invariant: attempts that fail one after the other come at ever longer distances, and those of
//! many clients not at the same time. A connection that was of no use is a failed attempt: to a
//! server that takes no writes, or that hangs up before it has answered anything. And whatever
//! happens, a client connects to one server no more than ten times in a second, unless a lease is
//! at stake.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// When the next attempt to connect may start: 10 ms doubling to 1 s, with full jitter above a
/// quarter.
#[derive(Debug)]
pub(crate) struct ReconnectBackoff {
    pause: Duration,
    pub(crate) not_before: Option<Instant>,
    /// When the last connection was made.
    made: Option<Instant>,
    /// When the last attempt was begun.
    tried: Option<Instant>,
}

/// Whether a lost connection had answered anything.
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
    /// An attempt begins.
    pub(crate) fn tries(&mut self) {
        self.tried = Some(Instant::now());
    }

    /// When the last attempt was begun.
    pub(crate) fn last_try(&self) -> Option<Instant> {
        self.tried
    }

    pub(crate) fn failed(&mut self) {
        self.wait(LONGEST);
    }

    /// The server that is connected to takes no writes. Reads it may serve, so that the pauses stay
    /// short enough for these.
    pub(crate) fn demoted(&mut self) {
        self.settle();
        self.wait(LONGEST_DEMOTED);
    }

    /// There is a connection. It may yet turn out to be of no use.
    pub(crate) fn made(&mut self) {
        self.not_before = None;
        self.made = Some(Instant::now());
    }

    /// The connection is lost. One that was of use is made again at once.
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

    /// There is something new to connect to: no need to wait.
    pub(crate) fn skip(&mut self) {
        self.not_before = None;
    }

    fn settle(&mut self) {
        if self.made.is_some_and(|at| at.elapsed() >= SETTLED) {
            self.start_over();
        }
    }

    fn start_over(&mut self) {
        self.pause = SHORTEST;
        self.not_before = None;
    }

    fn wait(&mut self, longest: Duration) {
        let pause = self.pause.min(longest);
        self.not_before = Some(Instant::now() + pause.mul_f64(rand::random_range(0.25..1.0)));
        self.pause = (self.pause * 2).min(LONGEST);
    }
}

/// How often one server is connected to, by all connections of a client together.
#[derive(Debug, Default)]
pub(crate) struct ConnectRate(Mutex<VecDeque<Instant>>);

/// The paces of one client: a server that is both asked for the slots and used has one for both.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnectRates(Arc<Mutex<HashMap<Box<str>, Weak<ConnectRate>>>>);

impl ConnectRates {
    /// That of the server at `address`.
    pub(crate) fn of(&self, address: &str) -> Arc<ConnectRate> {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = paces.get(address).and_then(Weak::upgrade) {
            return pace;
        }
        paces.retain(|_, pace| pace.strong_count() > 0);
        let pace = Arc::<ConnectRate>::default();
        paces.insert(address.into(), Arc::downgrade(&pace));
        pace
    }
}

impl ConnectRate {
    /// When the next attempt may be begun. It may need a second connection, to find out why the
    /// first was closed: there is always room for that.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = last.len().checked_sub(MOST_A_SECOND - 1)?;
        last.get(place).map(|first| *first + SECOND)
    }

    /// A connection is being made.
    pub(crate) fn note(&self) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back(Instant::now());
        while last.len() > MOST_A_SECOND {
            last.pop_front();
        }
    }
}

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);
const LONGEST_DEMOTED: Duration = Duration::from_millis(250);

/// A connection that was there for so long was of use.
const SETTLED: Duration = Duration::from_secs(10);

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
