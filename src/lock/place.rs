//! `Place`: being told by push. The wake channel of a bucket carries grants to campaigns and the
//! news of broken locks to their holders.
//!
//! Invariant: a message is a hint that names an owner; what it claims is used only where it cannot
//! be stale (see [`campaign`](super::campaign)).

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::mpsc;

use super::hold::{ByOwner, Owner, Seal};
use super::line::Locks;
use super::{Fence, Keys};
use crate::client::Client;

/// Campaigns that may be granted a lock by push.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<ByOwner<mpsc::UnboundedSender<Grant>>>);

/// An owner that is registered for grants by push, while this lives.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) owner: Owner,
    pub(super) grants: mpsc::UnboundedReceiver<Grant>,
    locks: Arc<Locks>,
}

/// What a push claims.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) fence: Fence,
    /// The seal of the former holder, by the secret that the message brings.
    pub(super) seal: Seal,
}

impl Places {
    fn map<R>(&self, with: impl FnOnce(&mut ByOwner<mpsc::UnboundedSender<Grant>>) -> R) -> R {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Locks {
    /// Registers `owner` for grants by push.
    pub(super) fn expect(self: &Arc<Self>, owner: Owner) -> Place {
        let (sender, grants) = mpsc::unbounded_channel();
        self.places().map(|places| places.insert(owner, sender));
        Place {
            owner,
            grants,
            locks: self.clone(),
        }
    }

    /// Sees to it that pushes for a bucket are heard; says whether they are.
    pub(super) async fn listen(self: &Arc<Self>, client: &Client, keys: &Keys) -> bool {
        let Some(hub) = client.hub(&keys.channel) else {
            return false;
        };
        if hears(client, keys) {
            return true;
        }
        let locks = Arc::downgrade(self);
        let listener = Arc::new(move |message: &[u8]| received(&locks, message));
        let heard = hub
            .listen(&keys.channel, listener, client.deadline().at)
            .await;
        if let Err(error) = &heard {
            tracing::debug!(target: "hedgerow::lock", %error, "no pushes; waiting by timer");
        }
        heard.is_ok()
    }
}

/// Whether pushes for the bucket of `keys` are heard.
pub(super) fn hears(client: &Client, keys: &Keys) -> bool {
    client
        .hub(&keys.channel)
        .is_some_and(|hub| hub.hears(&keys.channel))
}

/// A message on a wake channel: `grant <id> <fence> <secret>` or `broken <id>`; `there` only asks whether
/// somebody listens.
fn received(locks: &Weak<Locks>, message: &[u8]) {
    let (Some(locks), Ok(message)) = (locks.upgrade(), std::str::from_utf8(message)) else {
        return;
    };
    let mut words = message.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("grant"), Some(owner), Some(fence)) => {
            let (Ok(fence), Some(owner)) = (fence.parse(), Owner::parse(owner)) else {
                return;
            };
            let grants = locks.places().map(|places| places.get(&owner).cloned());
            if let Some(grants) = grants.filter(|_| fence < TOO_LARGE) {
                let seal = Seal::of(words.next().unwrap_or_default().as_bytes());
                let fence = Fence(fence);
                let _ = grants.send(Grant { fence, seal });
            }
        }
        (Some("broken"), Some(owner), None) => {
            if let Some(owner) = Owner::parse(owner) {
                locks.keeper().said_to_be_broken(owner);
            }
        }
        _ => {}
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.locks.places().map(|places| places.remove(&self.owner));
    }
}

/// What no fence reaches: from here on, Lua numbers skip integers.
const TOO_LARGE: u64 = 1 << 53;
