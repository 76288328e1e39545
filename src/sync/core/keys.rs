//! `Keys`: the keys of one lock, and the scripts on them.
//!
//! Invariant: all keys of one name share a bucket, and so a slot, a fence counter and a wake
//! channel. Requests, releases and renewals use it.

use std::fmt;

use super::owner::{Owner, Secret};
use crate::client::Client;
use crate::error::Result;
use crate::key::{Bucket, Key};
use crate::name::Name;
use crate::script::{Call, Script, script};

script!(pub(in crate::sync) ACQUIRE = "acquire.lua" after "prelude.lua");
script!(RELEASE = "release.lua" after "prelude.lua");
script!(RELEASE_ALONE = "release_alone.lua");
script!(pub(in crate::sync) HAND_OVER_LOCAL = "pass.lua" after "prelude.lua");
script!(pub(in crate::sync) RENEW = "renew.lua");

/// The keys of one lock.
#[derive(Clone)]
pub(in crate::sync) struct Keys {
    pub(in crate::sync) name: Name,
    /// The lock, the fence counter and the queue, in the order that the scripts declare.
    all: [Key; 3],
    /// The channel on which this process is told of grants and losses in the bucket.
    pub(in crate::sync) channel: Key,
}

impl Keys {
    pub(in crate::sync) fn of(client: &Client, name: &Name) -> Result<Self> {
        let space = client.namespace();
        // The bucket is the unit of routing: what shares it can be granted and told in one script.
        let bucket = Bucket::of(name.real());
        let wake = space.bucket_wake(bucket);
        Ok(Self {
            all: [
                space.synchronizer("lock", name.real())?,
                space.fence(bucket),
                space.synchronizer("queue", name.real())?,
            ],
            channel: wake.ending_in(client.process()),
            name: name.clone(),
        })
    }

    pub(in crate::sync) fn lock(&self) -> &Key {
        &self.all[0]
    }

    pub(in crate::sync) fn call(&self, script: &'static Script) -> Call {
        script.call(&self.all)
    }

    /// Returns the call that gives up what `owner` has if no waiter is in the queue. It answers
    /// `OTHERWISE` if that may not be so.
    pub(in crate::sync) fn release_alone(&self, owner: Owner) -> Call {
        // One key instead of three: each costs the server time.
        RELEASE_ALONE.call([self.lock()]).arg(&owner.unqueued()[..])
    }

    /// Returns the call that gives up what `owner` has.
    pub(in crate::sync) fn release(&self, owner: Owner, secret: Secret) -> Call {
        let call = self.call(&RELEASE).arg(&owner.unqueued()[..]);
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
