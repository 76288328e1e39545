//! Reads at another place than the primary of the client's own ring: at a replica, and on the other
//! ring while keys move.

use super::{Fetch, Ring};
use crate::cache::read::answers::Place;
use crate::cache::read::judge::Taken;
use crate::cache::read::reading::{ReadFrom, Reading};
use crate::cache::read::wanted::Wanted;
use crate::error::Result;
use crate::key::Key;
use crate::topology::placement::ReadOther;

impl Fetch<'_> {
    /// As [`look`](Self::look), with what a replica has. What no replica has is read from the
    /// primary.
    pub(super) async fn look_at_replica<T: Taken>(
        &self,
        keys: &[Key],
        readings: &mut [Place<T>],
    ) -> Result<()> {
        let client = &self.cache.client;
        let primary = Self {
            from: ReadFrom::Primary,
            ..*self
        };
        let wanted = Wanted::new(client, self.tags, keys, self.ring);
        let found = client.read_replica(&wanted.keys, self.deadline);
        let Some(found) = found.await else {
            return Box::pin(primary.look(keys, readings)).await;
        };
        let answers = self.answers(wanted, (found, Vec::new()), Vec::new());
        let mut open = answers.judged(readings);
        self.judge_again(&mut open, &answers, readings).await?;
        // Also what is invalid there: the replica may only be behind. What has a stale window is
        // judged by the clock of the primary, which has given it its deadlines.
        let mut missing: Vec<usize> = open.missed.into_iter().map(|(at, _)| at).collect();
        missing.extend(open.untimed);
        if missing.is_empty() {
            return Ok(());
        }
        let rest = Box::pin(primary.look_for_some(keys, &missing)).await?;
        for (at, reading) in missing.into_iter().zip(rest) {
            readings[at] = reading;
        }
        Ok(())
    }

    /// Looks for the misses on the other ring, if it may have them.
    pub(super) async fn look_elsewhere<T: Taken>(
        &self,
        keys: &[Key],
        readings: &mut [Place<T>],
    ) -> Result<()> {
        let mut missing = Vec::new();
        for (at, (key, reading)) in keys.iter().zip(&*readings).enumerate() {
            let Some(Ok(Reading::Miss(miss))) = reading else {
                continue;
            };
            let copies = self.cache.client.copies(key);
            // An entry that was judged here may have been stamped with the generations there.
            let may_be_there = copies.other.is_some() || !miss.seen.is_empty();
            if copies.read == ReadOther::WhenMissing && may_be_there {
                missing.push(at);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let other = Self {
            ring: Ring::Other,
            ..*self
        };
        // In a box, so that the future of a hit stays small.
        let found = Box::pin(other.look_for_some(keys, &missing)).await?;
        for (at, reading) in missing.into_iter().zip(found) {
            if let hit @ Some(Ok(Reading::Hit(_)) | Err(_)) = reading {
                readings[at] = hit;
            }
        }
        Ok(())
    }
}
