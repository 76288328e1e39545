//! Callers of this process that wait for loads led by other processes.
//!
//! Invariant: a [`WakeListener`] that was made before the lease was asked for receives every end of
//! that lease which is published to this process afterwards. Messages are hints: a waiter that is
//! woken asks again, and a waiter that is not woken has a timer. A flight that waits for the lease
//! uses this.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::Client;
use crate::key::Key;
use crate::net::pubsub::{Notice, PubSub};
use crate::time::Deadline;

/// The listeners of one client, by the value's key.
#[derive(Debug, Default)]
pub(in crate::cache) struct WakeListeners {
    listeners: Mutex<HashMap<Box<str>, watch::Sender<WakeUp>>>,
    /// The pub/sub connections where the last subscribe failed. Before the given moment, no other
    /// subscribe is tried there.
    push_unavailable: Mutex<Vec<(Weak<PubSub>, Instant)>>,
}

/// What the latest message said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum WakeUp {
    /// A value was stored: read it.
    Stored,
    /// The load ended without a value, or there was no message yet: ask for the lease.
    Ended,
}

/// Receives the messages for one key while it lives.
#[derive(Debug)]
pub(in crate::cache) struct WakeListener {
    listeners: Arc<WakeListeners>,
    key: Key,
    hints: watch::Receiver<WakeUp>,
}

impl WakeListeners {
    pub(in crate::cache) fn open(self: &Arc<Self>, key: &Key) -> WakeListener {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let sender = listeners
            .entry(key.as_str().into())
            .or_insert_with(|| watch::Sender::new(WakeUp::Ended));
        WakeListener {
            hints: sender.subscribe(),
            listeners: self.clone(),
            key: key.clone(),
        }
    }

    /// Returns the channel on which this process receives the ends of loads of `value`, once it is
    /// subscribed. `None` if it cannot be subscribed.
    pub(in crate::cache) async fn channel(
        self: &Arc<Self>,
        client: &Client,
        value: &Key,
        deadline: Deadline,
    ) -> Option<Key> {
        let pubsub = client.pubsub(value)?;
        let channel = client.load_wake(value)?;
        // The usual case: one channel serves all loads of this process on that server.
        if pubsub.hears(&channel) {
            return Some(channel);
        }
        // Another flight has just waited for this in vain. Each one that did so would be late for
        // the lease.
        if self.is_push_unavailable(&pubsub) {
            return None;
        }
        let listeners = self.clone();
        // A resync is not handled here: each flight that waits for a load watches for it by itself.
        let listener = Arc::new(move |notice: Notice<'_>| {
            if let Notice::Message(message) = notice {
                listeners.heard(message);
            }
        });
        let deadline = deadline.at.min(Instant::now() + SUBSCRIBE_TIMEOUT);
        match pubsub.listen(&channel, listener, deadline).await {
            Ok(()) => Some(channel),
            Err(error) => {
                tracing::debug!(target: "hedgerow::cache", %error, "no pushes; waiting by timer");
                let until = Instant::now() + PUSH_RETRY;
                self.push_unavailable()
                    .push((Arc::downgrade(&pubsub), until));
                None
            }
        }
    }

    /// Takes a message: `+` or `-`, then the value's key.
    fn heard(&self, message: &[u8]) {
        let Some((mark, key)) = message.split_first() else {
            return;
        };
        let hint = match mark {
            b'+' => WakeUp::Stored,
            _ => WakeUp::Ended,
        };
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let sender = std::str::from_utf8(key)
            .ok()
            .and_then(|key| listeners.get(key));
        if let Some(sender) = sender {
            // Only the latest message counts: a woken flight asks the server in any case.
            sender.send_replace(hint);
        }
    }

    fn is_push_unavailable(&self, pubsub: &Arc<PubSub>) -> bool {
        let mut push_unavailable = self.push_unavailable();
        let now = Instant::now();
        push_unavailable.retain(|(_, until)| now < *until);
        push_unavailable
            .iter()
            .any(|(to, _)| to.as_ptr() == Arc::as_ptr(pubsub))
    }

    fn push_unavailable(&self) -> MutexGuard<'_, Vec<(Weak<PubSub>, Instant)>> {
        self.push_unavailable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl WakeListener {
    /// Forgets the messages so far. What is asked next is newer.
    pub(in crate::cache) fn clear(&mut self) {
        self.hints.mark_unchanged();
    }

    /// Returns the next message.
    pub(in crate::cache) async fn hint(&mut self) -> WakeUp {
        match self.hints.changed().await {
            Ok(()) => *self.hints.borrow_and_update(),
            // Does not happen: the sender lives in `listeners` as long as this listener does.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for WakeListener {
    fn drop(&mut self) {
        let mut listeners = self
            .listeners
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if listeners
            .get(self.key.as_str())
            // The last receiver is this one, which is dropped after this.
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            listeners.remove(self.key.as_str());
        }
    }
}

/// How long a flight waits for the push connection before it asks for the lease without it.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long flights wait by timer after a subscribe has failed.
const PUSH_RETRY: Duration = Duration::from_secs(1);
