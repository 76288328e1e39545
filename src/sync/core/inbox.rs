//! `GrantInbox`: the registration of one owner for grants by push. The wake channel of a bucket
//! carries two kinds of messages: grants to queue tasks, and the news of broken locks to their
//! holders.
//!
//! Invariant: a message is a hint that names an owner. What it claims is used only where it cannot
//! be stale (see [`QueueTask`](super::queue_task)). First tries and queue tasks register, and the
//! keeper subscribes for its holders.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use super::keeper::Keeper;
use super::keys::{Hearing, Keys};
use super::owner::{ByOwner, Owner, Seal};
use crate::client::Client;
use crate::net::pubsub::Notice;
use crate::sync::fence::{Fence, TOO_LARGE};

/// The owners that may receive a grant by push.
#[derive(Debug, Default)]
pub(in crate::sync) struct Inboxes(Mutex<ByOwner<Arc<Mailbox>>>);

/// An owner that is registered for grants by push while this lives.
#[derive(Debug)]
pub(in crate::sync) struct GrantInbox {
    pub(in crate::sync) owner: Owner,
    hint: Arc<Mailbox>,
    inboxes: Arc<Inboxes>,
}

/// The push that waits to be read. Of several it is the one with the greatest fence, so that a
/// message from before the last grant never hides that grant.
#[derive(Debug, Default)]
struct Mailbox {
    grant: Mutex<Option<Grant>>,
    came: Notify,
}

/// What a push claims.
#[derive(Debug)]
pub(in crate::sync) struct Grant {
    pub(in crate::sync) fence: Fence,
    /// The seal of the former holder: the digest of the secret in the message.
    pub(in crate::sync) seal: Seal,
}

impl Inboxes {
    /// Registers `owner` for grants by push.
    pub(in crate::sync) fn expect(self: &Arc<Self>, owner: Owner) -> GrantInbox {
        let hint: Arc<Mailbox> = Arc::default();
        self.map(|inboxes| inboxes.insert(owner, hint.clone()));
        GrantInbox {
            owner,
            hint,
            inboxes: self.clone(),
        }
    }

    /// Subscribes to the pushes of a bucket. Returns whether they are received.
    pub(in crate::sync) async fn listen(
        self: &Arc<Self>,
        keeper: &Arc<Keeper>,
        client: &Client,
        keys: &Keys,
    ) -> bool {
        let Some(pubsub) = client.pubsub(&keys.channel) else {
            return false;
        };
        // One subscription serves all names of a bucket.
        if keys.hearing(client) == Hearing::Pushes {
            return true;
        }
        // Weak: the pub/sub connection keeps the listener, and must not keep the client's registry
        // alive.
        let (inboxes, keeper) = (Arc::downgrade(self), Arc::downgrade(keeper));
        let channel = keys.channel.clone();
        let listener = Arc::new(move |notice: Notice<'_>| match notice {
            Notice::Message(message) => received(&inboxes, &keeper, message),
            Notice::Resync => {
                if let Some(keeper) = keeper.upgrade() {
                    keeper.listen_again(&channel);
                }
            }
        });
        let heard = pubsub
            .listen(&keys.channel, listener, client.deadline().at)
            .await;
        if let Err(error) = &heard {
            tracing::debug!(target: "hedgerow::sync", %error, "no pushes; waiting by timer");
        }
        heard.is_ok()
    }

    fn map<R>(&self, with: impl FnOnce(&mut ByOwner<Arc<Mailbox>>) -> R) -> R {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Mailbox {
    fn push(&self, grant: Grant) {
        let mut waits = self.waits();
        // Messages may arrive late. The newest grant is the only one that can still count.
        if waits.as_ref().is_none_or(|waits| waits.fence < grant.fence) {
            *waits = Some(grant);
        }
        drop(waits);
        self.came.notify_one();
    }

    fn waits(&self) -> MutexGuard<'_, Option<Grant>> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GrantInbox {
    /// Waits for a push that claims a grant.
    ///
    /// Cancel safety: a push that was not returned is returned by the next call.
    pub(in crate::sync) async fn grant(&self) -> Grant {
        loop {
            if let Some(grant) = self.hint.waits().take() {
                return grant;
            }
            self.hint.came.notified().await;
        }
    }
}

/// Handles a message on a wake channel: `grant <id> <fence> <secret>` or `broken <id>`. A third
/// one, `there`, only asks whether a process listens, and is ignored.
fn received(inboxes: &Weak<Inboxes>, keeper: &Weak<Keeper>, message: &[u8]) {
    let (Some(inboxes), Ok(message)) = (inboxes.upgrade(), std::str::from_utf8(message)) else {
        return;
    };
    let mut words = message.split(' ');
    match (words.next(), words.next(), words.next()) {
        (Some("grant"), Some(owner), Some(fence)) => {
            let (Ok(fence), Some(owner)) = (fence.parse(), Owner::parse(owner)) else {
                return;
            };
            let hint = inboxes.map(|inboxes| inboxes.get(&owner).cloned());
            // A forged fence of any size would hide the true grants after it.
            if let Some(hint) = hint.filter(|_| fence < TOO_LARGE) {
                // A message without a secret gets a seal that no answer names.
                let seal = Seal::of(words.next().unwrap_or_default().as_bytes());
                let fence = Fence(fence);
                hint.push(Grant { fence, seal });
            }
        }
        (Some("broken"), Some(owner), None) => {
            if let (Some(owner), Some(keeper)) = (Owner::parse(owner), keeper.upgrade()) {
                keeper.said_to_be_broken(owner);
            }
        }
        _ => {}
    }
}

impl Drop for GrantInbox {
    fn drop(&mut self) {
        self.inboxes.map(|inboxes| inboxes.remove(&self.owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(fence: u64) -> Grant {
        Grant {
            fence: Fence(fence),
            seal: Seal::of(b""),
        }
    }

    #[tokio::test]
    async fn one_push_waits_to_be_heard_however_many_there_are() {
        let inbox = Arc::<Inboxes>::default().expect(Owner::random());
        for fence in [7, 9, 8, 9] {
            inbox.hint.push(grant(fence));
        }
        assert_eq!(inbox.grant().await.fence, Fence(9));
        // Earlier ones are not read. A later one is, whatever its fence.
        inbox.hint.push(grant(3));
        assert_eq!(inbox.grant().await.fence, Fence(3));
        assert!(inbox.hint.waits().is_none());
    }
}
