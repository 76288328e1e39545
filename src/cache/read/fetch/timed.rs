//! Reads that also ask how long their entries still live.
//!
//! Invariant: an entry is judged by a time only if that was said of this entry, and before it was
//! read.

use std::pin::pin;

use futures::FutureExt as _;
use futures::future::{Either, join_all, select};

use super::{Failing, Fetch};
use crate::cache::read::answers::Place;
use crate::cache::read::judge::{Left, Taken};
use crate::cache::read::wanted::Wanted;
use crate::error::Result;
use crate::key::Key;
use crate::script::Retry;
use crate::wire::command::plain;
use crate::wire::value::integer;

impl Fetch<'_> {
    /// As [`look`](Self::look), and asks how long the entries still live.
    ///
    /// That tells the time by which an entry is judged, and does so only if it was said of this
    /// entry: of one that has taken its place meanwhile, more would be left, and the entry would
    /// seem to be fresh. So it must have been said before the entry was read. Both are sent over
    /// one connection, in this order, so it was said before if it was sent once and is answered
    /// before the read. If that is not sure, no time is known, and an entry that needs it is read
    /// again.
    ///
    /// An entry of 64 KiB or more has a connection of its own, where the order of the answers is
    /// all that is known. If it is replaced just while both are under way, the replaced entry may
    /// be judged as if it had been read before it was stale.
    pub(super) async fn look_with_time<T: Taken>(
        &self,
        keys: &[Key],
        readings: &mut [Place<T>],
    ) -> Result<()> {
        let client = &self.cache.client;
        let wanted = Wanted::new(client, self.tags, keys, self.ring);
        let detours = client.detours();
        let unproved = || vec![Left::Unread; keys.len()];
        let (left, found) = {
            let lives = wanted.keys[..keys.len()].iter().map(|key| async move {
                let left = client.command_once(plain("PTTL", key), key, self.deadline);
                left.await.and_then(integer).map_or(Left::Unread, left_of)
            });
            let (lives, read) = (pin!(join_all(lives)), pin!(self.found(&wanted.keys)));
            match select(lives, read).await {
                Either::Left((left, read)) => (left, read.await?),
                // Both may have come since the times were looked at.
                Either::Right((found, lives)) => {
                    (lives.now_or_never().unwrap_or_else(unproved), found?)
                }
            }
        };
        let left = match client.detours() == detours {
            true => left,
            // It may have been sent again, to another server.
            false => unproved(),
        };
        let answers = self.answers(wanted, found, left);
        let open = answers.judged(readings);
        if open.is_empty() {
            return Ok(());
        }
        Box::pin(self.settle(open, keys, answers, readings)).await
    }

    /// As [`look_with_time`](Self::look_with_time), one after the other.
    pub(super) async fn look_with_time_before<T: Taken>(
        &self,
        keys: &[Key],
        readings: &mut [Place<T>],
    ) -> Result<()> {
        let client = &self.cache.client;
        let wanted = Wanted::new(client, self.tags, keys, self.ring);
        let lives = wanted.keys[..keys.len()].iter().map(|key| async move {
            let left = client.command(plain("PTTL", key), key, Retry::Reads, self.deadline);
            left.await.and_then(integer).map(left_of)
        });
        let (mut left, mut untimed) = (Vec::with_capacity(keys.len()), Vec::new());
        for (at, life) in join_all(lives).await.into_iter().enumerate() {
            match (life, self.failing) {
                (Ok(life), _) => left.push(life),
                (Err(error), Failing::All) => return Err(error),
                (Err(error), Failing::Each) => {
                    left.push(Left::Unread);
                    untimed.push((at, error));
                }
            }
        }
        let (found, mut lost) = self.found(&wanted.keys).await?;
        lost.append(&mut untimed);
        let answers = self.answers(wanted, (found, lost), left);
        let open = answers.judged(readings);
        if open.is_empty() {
            return Ok(());
        }
        Box::pin(self.settle(open, keys, answers, readings)).await
    }
}

/// How long a key still lives, as `PTTL` says.
fn left_of(millis: Option<i64>) -> Left {
    match millis {
        // It has no end.
        Some(-1) => Left::Long,
        // There is no key. If an entry was read all the same, it may have just ended.
        left => Left::Millis(left.and_then(|left| u64::try_from(left).ok()).unwrap_or(0)),
    }
}
