//! `Rounds`: how long one call of `memoize` waits for the loads of others, and for how many.
//!
//! Invariant: a call waits until [`over`](Rounds::over) at the latest, whatever others do. It takes
//! part in at most four loads: three of others, then one without a lease, which is its own or began
//! after the call. Its own load begins no later than half of `max_load` after the call, unless the
//! call is still waiting for its first load then.
//!
//! `memoize` keeps one for the caller, and the load of a flight keeps one for the call that opened
//! the flight.

use std::time::Duration;

use tokio::time::Instant;

use crate::cache::config::LeaseTimes;
use crate::error::{Error, ErrorKind};

/// What one call of `memoize` has been through.
#[derive(Debug, Clone, Copy)]
pub(in crate::cache) struct Rounds {
    began: Instant,
    terms: LeaseTimes,
    /// What the call may take beside a load.
    deadline: Duration,
    /// The number of loads of others that were of no use to it.
    used: u32,
    /// The call had to ask again. It then reads from the primary only.
    again: bool,
}

impl Rounds {
    /// Starts counting for a call that begins now.
    pub(in crate::cache) fn begin(terms: LeaseTimes, deadline: Duration) -> Self {
        Self {
            began: Instant::now(),
            terms,
            deadline,
            used: 0,
            again: false,
        }
    }

    pub(in crate::cache) fn began(&self) -> Instant {
        self.began
    }

    /// The number of loads of others that were of no use.
    pub(in crate::cache) fn used(&self) -> u32 {
        self.used
    }

    /// Counts a load of another call that was of no use.
    pub(in crate::cache) fn another(&mut self) {
        self.used += 1;
        self.again = true;
    }

    /// Notes that the call has to ask again, although no load has ended.
    pub(in crate::cache) fn again(&mut self) {
        self.again = true;
    }

    /// Whether the call asks for the first time.
    pub(in crate::cache) fn is_first(&self) -> bool {
        !self.again
    }

    /// When the call ends, whatever others do.
    pub(in crate::cache) fn over(&self) -> Instant {
        self.began + self.terms.max_load.duration() + self.deadline
    }

    /// Until when the call waits to be admitted as one of the loads of a limit.
    pub(in crate::cache) fn admitted_by(&self) -> Instant {
        self.began + self.terms.max_load.duration()
    }

    /// When a call that has waited in vain for a load stops waiting for others: half of `max_load`
    /// after the call began.
    pub(in crate::cache) fn alone_at(&self) -> Instant {
        self.began + self.terms.max_load.duration() / 2
    }

    /// Whether the call loads by itself now.
    pub(in crate::cache) fn alone(&self) -> bool {
        // A call that has met no useless load yet goes on waiting: a load of others may still serve
        // it.
        self.used >= MOST || (self.used > 0 && Instant::now() >= self.alone_at())
    }

    /// Until when the call waits for the next load of another.
    pub(in crate::cache) fn patience(&self) -> Instant {
        match self.used {
            // The first wait may last to the end, since a first load may take all of `max_load`.
            0 => self.over(),
            _ => self.alone_at().min(self.over()),
        }
    }

    /// How long a flight may show no sign of life before the call no longer waits for it. After the
    /// same silence, another process may take over from a leader elsewhere.
    pub(in crate::cache) fn silence(&self) -> Duration {
        let half = self.terms.max_load.duration() / 2;
        self.terms.takeover.duration().min(half).max(SHORTEST)
    }

    /// The error of a call that has waited until its end.
    pub(in crate::cache) fn out_of_time() -> Error {
        Error::new(
            ErrorKind::LoaderTimeout,
            "no load of the key ended within max_load and the cache deadline; \
             one that is under way goes on",
        )
    }
}

/// How many loads of others a call waits for.
const MOST: u32 = 3;

/// A flight counts as silent no sooner than this, because a machine may be busy.
const SHORTEST: Duration = Duration::from_millis(500);
