//! Callers of this process that wait for loads led by other processes.
//!
//! Invariant: an [`WakeListener`] that was made before the lease was asked for hears of every end
//! of that lease which is published afterwards. Messages are hints: whoever is woken asks again,
//! and whoever is not has a timer.

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
    /// Where no attempt to listen is made before when: the last one failed.
    push_unavailable: Mutex<Vec<(Weak<PubSub>, Instant)>>,
}

/// What the latest message said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum WakeUp {
    /// A value was stored: read it.
    Stored,
    /// The load ended without one, or nothing was said yet: ask for the lease.
    Ended,
}

/// Hears of one key while it lives.
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

    /// The channel on which this process hears of loads of `value`, once it does; `None` when it
    /// cannot.
    pub(in crate::cache) async fn channel(
        self: &Arc<Self>,
        client: &Client,
        value: &Key,
        deadline: Deadline,
    ) -> Option<Key> {
        let pubsub = client.pubsub(value)?;
        let channel = client.load_wake(value)?;
        if pubsub.hears(&channel) {
            return Some(channel);
        }
        if self.is_push_unavailable(&pubsub) {
            return None;
        }
        let listeners = self.clone();
        // Who waits for a load hears by itself that messages were missed.
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

    /// A message: `+` or `-`, then the value's key.
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
    /// Forgets what was said so far: what is asked next is newer.
    pub(in crate::cache) fn clear(&mut self) {
        self.hints.mark_unchanged();
    }

    /// The next message.
    pub(in crate::cache) async fn hint(&mut self) -> WakeUp {
        match self.hints.changed().await {
            Ok(()) => *self.hints.borrow_and_update(),
            // The sender lives in `listeners`, as long as this listener does.
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
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            listeners.remove(self.key.as_str());
        }
    }
}

/// How long a flight lets the push connection keep it from asking for the lease.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(250);

/// How long flights wait by timer after listening has failed.
const PUSH_RETRY: Duration = Duration::from_secs(1);
