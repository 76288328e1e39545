//! Callers of this process that wait for loads led by other processes.
//!
//! Invariant: an [`Ear`] that was made before the lease was asked for hears of every end of that
//! lease which is published afterwards. Messages are hints: whoever is woken asks again, and
//! whoever is not has a timer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::Client;
use crate::key::Key;
use crate::net::pubsub::{Hub, Notice};
use crate::time::Deadline;

/// The ears of one client, by the value's key.
#[derive(Debug, Default)]
pub(in crate::cache) struct Ears {
    ears: Mutex<HashMap<Box<str>, watch::Sender<Hint>>>,
    /// Where no attempt to listen is made before when: the last one failed.
    deaf: Mutex<Vec<(Weak<Hub>, Instant)>>,
}

/// What the latest message said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Hint {
    /// A value was stored: read it.
    Stored,
    /// The load ended without one, or nothing was said yet: ask for the lease.
    Ended,
}

/// Hears of one key while it lives.
#[derive(Debug)]
pub(in crate::cache) struct Ear {
    ears: Arc<Ears>,
    key: Key,
    hints: watch::Receiver<Hint>,
}

impl Ears {
    pub(in crate::cache) fn open(self: &Arc<Self>, key: &Key) -> Ear {
        let mut ears = self.ears.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = ears
            .entry(key.as_str().into())
            .or_insert_with(|| watch::Sender::new(Hint::Ended));
        Ear {
            hints: sender.subscribe(),
            ears: self.clone(),
            key: key.clone(),
        }
    }

    /// The channel on which this process hears of loads of `value`, once it does; `None` when it
    /// cannot.
    pub(in crate::cache) async fn channel(
        self: &Arc<Self>,
        client: &Client,
        value: &Key,
        deadline: Deadline,
    ) -> Option<Key> {
        let hub = client.hub(value)?;
        let channel = client.load_wake(value)?;
        if hub.hears(&channel) {
            return Some(channel);
        }
        if self.is_deaf(&hub) {
            return None;
        }
        let ears = self.clone();
        // Who waits for a load hears by itself that messages were missed.
        let listener = Arc::new(move |notice: Notice<'_>| {
            if let Notice::Message(message) = notice {
                ears.heard(message);
            }
        });
        let deadline = deadline.at.min(Instant::now() + PATIENCE);
        match hub.listen(&channel, listener, deadline).await {
            Ok(()) => Some(channel),
            Err(error) => {
                tracing::debug!(target: "hedgerow::cache", %error, "no pushes; waiting by timer");
                let until = Instant::now() + DEAFNESS;
                self.deaf().push((Arc::downgrade(&hub), until));
                None
            }
        }
    }

    /// A message: `+` or `-`, then the value's key.
    fn heard(&self, message: &[u8]) {
        let Some((mark, key)) = message.split_first() else {
            return;
        };
        let hint = match mark {
            b'+' => Hint::Stored,
            _ => Hint::Ended,
        };
        let ears = self.ears.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = std::str::from_utf8(key).ok().and_then(|key| ears.get(key));
        if let Some(sender) = sender {
            sender.send_replace(hint);
        }
    }

    fn is_deaf(&self, hub: &Arc<Hub>) -> bool {
        let mut deaf = self.deaf();
        let now = Instant::now();
        deaf.retain(|(_, until)| now < *until);
        deaf.iter().any(|(to, _)| to.as_ptr() == Arc::as_ptr(hub))
    }

    fn deaf(&self) -> MutexGuard<'_, Vec<(Weak<Hub>, Instant)>> {
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ear {
    /// Forgets what was said so far: what is asked next is newer.
    pub(in crate::cache) fn clear(&mut self) {
        self.hints.mark_unchanged();
    }

    /// The next message.
    pub(in crate::cache) async fn hint(&mut self) -> Hint {
        match self.hints.changed().await {
            Ok(()) => *self.hints.borrow_and_update(),
            // The sender lives in `ears`, as long as this ear does.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut ears = self
            .ears
            .ears
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if ears
            .get(self.key.as_str())
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            ears.remove(self.key.as_str());
        }
    }
}

/// How long a flight lets the push connection keep it from asking for the lease.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long flights wait by timer after listening has failed.
const DEAFNESS: Duration = Duration::from_secs(1);
