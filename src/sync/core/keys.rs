//! `Keys`: the keys of one synchronizer, and the calls of its kind's scripts on them.
//!
//! Invariant: all keys of one name share a bucket, and so a slot, a fence counter and a wake
//! channel. Requests, releases and renewals use it.

use std::fmt;

use super::kind::{Kind, parsed};
use super::owner::{Owner, Secret};
use crate::client::Client;
use crate::error::Result;
use crate::key::{Bucket, Key};
use crate::name::Name;
use crate::script::{Call, LazyScript};

/// The keys of one synchronizer.
#[derive(Clone)]
pub(in crate::sync) struct Keys {
    pub(in crate::sync) kind: &'static Kind,
    pub(in crate::sync) name: Name,
    /// The holders, the fence counter and the queue, in the order that the scripts declare.
    all: [Key; 3],
    /// The channel on which this process is told of grants and losses in the bucket.
    pub(in crate::sync) channel: Key,
}

impl Keys {
    pub(in crate::sync) fn of(client: &Client, kind: &'static Kind, name: &Name) -> Result<Self> {
        let space = client.namespace();
        // The bucket is the unit of routing: what shares it can be granted and told in one script.
        let bucket = Bucket::of(name.real());
        let wake = space.bucket_wake(bucket);
        Ok(Self {
            all: [
                space.synchronizer(kind.name, kind.words.name, name.real())?,
                space.fence(bucket),
                space.synchronizer(kind.queue, kind.words.name, name.real())?,
            ],
            channel: wake.ending_in(client.process()),
            name: name.clone(),
            kind,
        })
    }

    /// The key of the holders. It also stands for the synchronizer: no other has it.
    pub(in crate::sync) fn holders(&self) -> &Key {
        &self.all[0]
    }

    pub(in crate::sync) fn call(&self, script: &'static LazyScript) -> Call {
        parsed(script).call(&self.all)
    }

    /// Returns the call that gives up what `owner` has if no waiter is in the queue. `None` if the
    /// kind has none.
    pub(in crate::sync) fn release_alone(&self, owner: Owner) -> Option<Call> {
        let script = parsed(self.kind.scripts.release_alone?);
        // One key instead of three: each costs the server time.
        Some(script.call([self.holders()]).arg(&owner.unqueued()[..]))
    }

    /// Returns the call that gives up what `owner` has.
    pub(in crate::sync) fn release(&self, owner: Owner, secret: Secret) -> Call {
        let call = self
            .call(self.kind.scripts.release)
            .arg(&owner.unqueued()[..]);
        match secret {
            Secret::Said => call.arg(owner.secret().as_bytes()),
            // An empty secret matches no seal, so the next holder asks the server.
            Secret::Kept => call.arg(""),
        }
    }

    /// Returns whether this process receives the pushes of the bucket now.
    pub(in crate::sync) fn hearing(&self, client: &Client) -> Hearing {
        match client.pubsub(&self.channel) {
            // Looked up, not asked: no I/O on the way of an uncontended acquire.
            Some(pubsub) if pubsub.hears(&self.channel) => Hearing::Pushes,
            _ => Hearing::Nothing,
        }
    }
}

impl fmt::Debug for Keys {
    /// Shows the name only: the keys contain it as it is, even where it must be hidden.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.name).finish()
    }
}

/// Whether this process receives the pushes of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Hearing {
    Pushes,
    Nothing,
}
