//! `Upload`: a large entry that is in Redis and not yet the value of its key.
//!
//! Invariant: an upload has a key of its own, which nothing reads, until one script makes it the
//! value, at most once. So it may travel on another connection than all other commands. If the
//! caller has left, its upload is never adopted, and the TTL removes it.
//!
//! `set` and the commit of a load call this.

use std::time::Duration;

use rand::random;

use crate::cache::entry_keys::EntryKeys;
use crate::client::Client;
use crate::codec::HEADER;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::net::pipeline::request::LARGE;
use crate::script::{Call, Retry, script};
use crate::time::{Deadline, Ttl};
use crate::wire::command::plain;

script!(ADOPT = "adopt.lua" after "../entry.lua");

/// An entry that was uploaded.
#[derive(Debug)]
pub(in crate::cache) struct Upload {
    key: Key,
}

impl Upload {
    /// Uploads `entry` to the server of `place`, if it is large.
    ///
    /// Cancel safety: safe. What has arrived is removed by its TTL.
    pub(in crate::cache) async fn of(
        client: &Client,
        place: &EntryKeys,
        entry: &[u8],
        deadline: Deadline,
    ) -> Result<Option<Self>> {
        // Small entries travel in the script itself, which saves a command.
        if entry.len() < LARGE {
            return Ok(None);
        }
        // A random key: two uploads of one value must not meet.
        let key = place.value.upload(random());
        let mut command = plain("SET", &key);
        let life = deadline.remaining() + GRACE;
        command.arg(entry).arg("PX").arg(life.as_millis() as u64);
        // Safe to repeat: it writes the same bytes to a key that only this call knows.
        let sent = client.command(command, &key, Retry::Safe, deadline.apart());
        // Whatever became of the upload, nothing is stored.
        sent.await.map_err(Error::of_own_question)?;
        Ok(Some(Self { key }))
    }

    /// Makes the call that turns `entry`, which this holds, into the value: fresh for `ttl`, stale
    /// for `window` ms more (bare if it is empty), under the lease of this token and fence, or
    /// under none.
    pub(in crate::cache) fn adopt(
        &self,
        place: &EntryKeys,
        entry: &[u8],
        (ttl, window): (Ttl, &str),
        lease: Option<(&[u8; 16], i64)>,
    ) -> Call {
        let [value, load_lease] = place.keys();
        let call = ADOPT
            .call([value, load_lease, &self.key])
            .arg(ttl.millis())
            .arg(&entry[..entry.len().min(HEADER)])
            .arg(entry.len());
        let call = match lease {
            Some((token, fence)) => call.arg(token).arg(fence),
            None => call.arg("").arg(""),
        };
        // Over whatever is there.
        call.arg("*").arg(window)
    }

    /// Makes the call that turns `entry`, which this holds, into the value, if the entry there
    /// begins with `head`. `ttl` is in ms, or empty to keep the end of that entry.
    pub(in crate::cache) fn adopt_over(
        &self,
        place: &EntryKeys,
        entry: &[u8],
        ttl: &str,
        head: &[u8],
    ) -> Call {
        let [value, load_lease] = place.keys();
        ADOPT
            .call([value, load_lease, &self.key])
            .arg(ttl)
            .arg(&entry[..entry.len().min(HEADER)])
            .arg(entry.len())
            .arg("")
            .arg("")
            .arg(head)
            .arg(0)
    }
}

/// The error if the upload was not there when it was to be stored.
pub(in crate::cache) fn gone() -> Error {
    Error::new(
        ErrorKind::Server,
        "{server} no longer had the value when it was to be stored: it evicts keys, has failed over, or \
         another call has replaced the value since",
    )
    .with_fate(Fate::Unknown)
}

/// How much longer an upload lives than the call that sends it.
const GRACE: Duration = Duration::from_secs(1);
