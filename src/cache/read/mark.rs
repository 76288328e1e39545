//! `Mark`: which entry was judged valid, for a verb that changes it.
//!
//! Invariant: a verb changes an entry only if the entry is still the one that was judged. The
//! script compares the revision and the checksum, which the first bytes hold, and not the
//! deadlines. The verbs that change entries read marks.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::judge::Taken;
use crate::codec::{Decoder, Envelope, HEADER, Stamp, Unreadable};

/// Which valid entry there is.
#[derive(Debug)]
pub(in crate::cache) struct Mark {
    /// Its first bytes.
    pub(in crate::cache) head: [u8; HEADER],
    /// Its tags, with their generations.
    pub(in crate::cache) stamps: Vec<Stamp>,
    /// When the entry is no longer fresh, since 1970 by the clock of the server.
    ends: Duration,
    window: Duration,
}

impl Mark {
    /// When the entry is no longer fresh, since 1970 by the clock of the server.
    pub(in crate::cache) fn ends(&self) -> Duration {
        self.ends
    }

    /// How long the entry may be served stale once it is no longer fresh.
    pub(in crate::cache) fn window(&self) -> Duration {
        self.window
    }
}

impl Taken for Mark {
    fn of(
        entry: &[u8],
        envelope: &Envelope<'_>,
        decoder: &Decoder<'_>,
    ) -> Result<Self, Unreadable> {
        decoder.admits(envelope)?;
        let head = entry.first_chunk().copied();
        let window = envelope.stale_until.saturating_sub(envelope.fresh_until);
        Ok(Self {
            ends: Duration::from_millis(envelope.fresh_until),
            window: Duration::from_millis(window),
            head: head.unwrap_or([0; HEADER]),
            stamps: envelope.stamps().collect(),
        })
    }
}

/// A value, and the mark of its entry.
impl<V: DeserializeOwned> Taken for (Arc<V>, Mark) {
    fn of(
        entry: &[u8],
        envelope: &Envelope<'_>,
        decoder: &Decoder<'_>,
    ) -> Result<Self, Unreadable> {
        let value = Taken::of(entry, envelope, decoder)?;
        Ok((value, Taken::of(entry, envelope, decoder)?))
    }
}
