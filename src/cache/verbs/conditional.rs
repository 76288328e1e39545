//! Storing under a condition, for `set_if`, `set` with `keep_ttl`, and `update`.
//!
//! Invariant: what decides is judged first, and the script stores only over exactly that.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::cache::Cache;
use crate::cache::entry_keys::EntryKeys;
use crate::cache::load::upload::{self, Upload};
use crate::cache::read::fetch;
use crate::cache::read::mark::Mark;
use crate::cache::read::reading::{Gone, Reading};
use crate::cache::stats::Timed;
use crate::cache::store_request::StoreRequest;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::script::script;
use crate::tags::{Life, SLACK};
use crate::time::{Backoff, Deadline, Ttl};

script!(SET_IF = "set_if.lua" after "../entry.lua");

/// What must be there for a value to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Absent,
    Present,
    Either,
}

/// Whether the end of the entry that is there is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeps {
    Nothing,
    Ttl,
}

/// Over what a value is stored, and for how long.
#[derive(Debug)]
pub(super) struct If<'h> {
    /// The first bytes of what must be there. Empty if nothing may be there.
    pub(super) head: &'h [u8],
    /// `None` keeps the end of the entry that is there.
    pub(super) ttl: Option<Ttl>,
}

/// The attempts of a call that begins anew when others have changed the entry meanwhile.
#[derive(Debug)]
pub(super) struct Attempts {
    deadline: Deadline,
    begun: u32,
    backoff: Backoff,
}

impl Attempts {
    pub(super) fn until(deadline: Deadline) -> Self {
        Self {
            deadline,
            begun: 0,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, 0.0..1.0),
        }
    }

    /// Begins the next attempt. From the third on it pauses before: one other call may have been
    /// faster by chance, but where there are many, they are in the way of each other.
    ///
    /// Cancel safety: safe.
    ///
    /// # Errors
    /// `Contended` if the deadline has passed after the first attempt.
    pub(super) async fn begins(&mut self) -> Result<()> {
        let before = self.begun;
        self.begun += 1;
        if before >= 2 {
            let pause = self.backoff.pause().min(self.deadline.remaining());
            sleep(pause).await;
        }
        if before >= 1 && Instant::now() >= self.deadline.at {
            let message =
                "others changed the entry each time until the deadline; nothing was changed";
            return Err(Error::new(ErrorKind::Contended, message).with_fate(Fate::NotExecuted));
        }
        Ok(())
    }
}

/// Stores `value` if the condition holds. Returns whether it was stored.
pub(super) async fn stored<V: Serialize + ?Sized>(
    value: &V,
    request: &StoreRequest,
    (condition, keeps): (Condition, Keeps),
    deadline: Deadline,
) -> Result<bool> {
    let (cache, place) = (&request.cache, &request.place);
    let mut attempt = Attempts::until(deadline);
    loop {
        attempt.begins().await?;
        // Read ahead of the entry where one must be there. If that is invalidated meanwhile, what
        // is stored over it is invalid, too.
        let early = match condition {
            Condition::Present => Some(request.generations(deadline).await),
            Condition::Absent | Condition::Either => None,
        };
        let reading: Reading<Mark> = match condition {
            Condition::Present => cache.judged(&place.value, deadline).await?,
            // The script looks at the type.
            Condition::Absent | Condition::Either => {
                fetch::read_here(cache, &place.value, deadline).await?
            }
        };
        let is_there = match &reading {
            Reading::Hit(_) => true,
            Reading::Old(_, miss) | Reading::Miss(miss) => miss.gone == Gone::Foreign,
        };
        if is_there && condition == Condition::Absent
            || !is_there && condition == Condition::Present
        {
            return Ok(false);
        }
        let (head, kept) = match reading {
            Reading::Hit(mark) if keeps == Keeps::Ttl => {
                let left = cache.left(place, deadline).await?;
                (Bytes::copy_from_slice(&mark.head), left)
            }
            Reading::Hit(mark) => (Bytes::copy_from_slice(&mark.head), None),
            Reading::Old(_, miss) | Reading::Miss(miss) => (miss.seen, None),
        };
        let generations = match early {
            Some(generations) => generations,
            None => request.generations(deadline).await,
        };
        // Whatever becomes of the tags, nothing is stored.
        let generations = generations.map_err(Error::of_own_question)?;
        let entry = request.encode(value, &generations, Duration::ZERO)?;
        if let Some(left) = kept {
            // What is kept may be longer than the TTL that was given.
            let (stamps, life) = (request.stamps(&generations), Life::For(left + SLACK));
            let outlived = cache.outlive(place, &stamps, life, deadline).await;
            outlived.map_err(Error::of_own_question)?;
        }
        let only = If {
            head: &head,
            ttl: match kept {
                Some(_) => None,
                None => Some(request.jittered_ttl()),
            },
        };
        if store_if(cache, place, &entry, only, deadline).await? {
            return Ok(true);
        }
    }
}

/// Stores `entry` at `place` if what is expected is there. Returns whether it was.
pub(super) async fn store_if(
    cache: &Cache,
    place: &EntryKeys,
    entry: &[u8],
    only: If<'_>,
    deadline: Deadline,
) -> Result<bool> {
    let _timer = cache.setup.counts.time(Timed::Store);
    let client = &cache.client;
    let upload = Upload::of(client, place, entry, deadline).await?;
    // Calls that come from now on must not join a load that is about to be ended.
    cache.state().flights.detach(&place.value);
    let ttl = only
        .ttl
        .map_or_else(String::new, |ttl| ttl.millis().to_string());
    let call = match &upload {
        Some(upload) => upload.adopt_over(place, entry, &ttl, only.head),
        None => SET_IF.call(place.keys()).arg(entry).arg(ttl).arg(only.head),
    };
    let reply = client.change(call, deadline).await?;
    match reply.status()? {
        "OK" | "STORED" => cache.setup.counts.stores.one_more(),
        "CHANGED" => return Ok(false),
        "GONE" => return Err(upload::gone()),
        _ => return Err(reply.unexpected()),
    }
    if let Some(on_other_ring) = place.on_other_ring(client) {
        let cleared = on_other_ring.clear(client, deadline).await;
        cleared.map_err(Error::after_a_part)?;
    }
    Ok(true)
}

/// The shortest and longest pause between attempts, each multiplied by a random factor below 1. An
/// attempt takes two or three round trips.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_pause_from_the_second_miss_on_for_longer_and_longer() {
        let mut attempts = Attempts::until(Deadline::after(Duration::from_secs(60)));
        let mut pauses = Vec::new();
        for _ in 0..40 {
            let began = Instant::now();
            attempts.begins().await.expect("there is time");
            pauses.push(began.elapsed());
        }
        assert_eq!(pauses[..2], [Duration::ZERO; 2]);
        let sum = |pauses: &[Duration]| pauses.iter().sum::<Duration>();
        assert!(sum(&pauses[2..]) > Duration::ZERO);
        assert!(sum(&pauses[2..4]) <= 3 * FIRST_PAUSE + Duration::from_millis(2));
        let longest = LONGEST_PAUSE + Duration::from_millis(1);
        assert!(pauses.iter().all(|pause| *pause <= longest));
        let last = &pauses[20..];
        assert!(
            last.iter().any(|pause| *pause != last[0]),
            "they are random"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_the_attempts() {
        let limit = Duration::from_millis(200);
        let (mut attempts, began) = (Attempts::until(Deadline::after(limit)), Instant::now());
        let error = loop {
            if let Err(error) = attempts.begins().await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Contended);
        assert!(began.elapsed() <= limit + Duration::from_millis(1));
    }
}
