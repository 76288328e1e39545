//! `PubSub`: the subscriber connection to one server. It delivers messages of other processes to
//! local listeners.
//!
//! Invariant: a channel counts as subscribed only while the session that subscribed it is in use.
//! After a loss all channels are subscribed again before [`Resync`] and [`Notice::Resync`] report
//! it, so a listener that re-checks its state then has missed nothing. Pushes only make waiters
//! faster: every waiter has a timer, too.
//!
//! A [`Node`](super::node::Node) has one. Locks and loads listen through their client.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::connection::{Connection, ConnectionConfig, OnPush, Signal};
#[cfg(feature = "near")]
use super::tracked::Tracked;
use crate::background::Background;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::time::Backoff;
use crate::wire::fault::from_server;

/// Receives the notices of one channel. It is mostly called on the socket task, so it must not
/// block.
pub(crate) type Listener = Arc<dyn Fn(Notice<'_>) + Send + Sync>;

/// What a listener receives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Notice<'m> {
    /// A message on its channel.
    Message(&'m [u8]),
    /// Messages may have been missed until now, or another server sends them from now on.
    Resync,
}

/// The subscriber connection to one server.
pub(crate) struct PubSub {
    link: Arc<Connection>,
    shared: Arc<Shared>,
    /// The task that keeps the channels subscribed over reconnects; see [`keep`].
    keeper: Background,
}

/// What the handles, the keeper and the socket task share.
struct Shared {
    channels: Mutex<Channels>,
    /// Wakes the keeper when a session was lost.
    lost: Notify,
    /// Rises when a new session has all channels subscribed again, or when a channel has moved to
    /// another server.
    missed: watch::Sender<u64>,
    /// Called when another server serves a channel, so that the topology asks again which.
    on_trouble: Option<Signal>,
    /// What near caches know of this server.
    #[cfg(feature = "near")]
    tracked: Arc<Tracked>,
}

/// Signals that a push may have been missed.
#[derive(Debug)]
pub(crate) struct Resync(Option<watch::Receiver<u64>>);

#[derive(Default)]
struct Channels {
    listeners: HashMap<String, Listener>,
    /// The channels that a session is subscribed to, with the epoch of that session.
    confirmed: HashMap<String, u64>,
    /// How many sessions were lost.
    losses: u64,
    /// After how many of these losses all channels were subscribed again.
    made_good: u64,
}

impl PubSub {
    /// The pub/sub of the server that `route` leads to.
    pub(crate) fn new(route: ConnectionConfig) -> Self {
        let shared = Arc::new(Shared {
            channels: Mutex::default(),
            lost: Notify::new(),
            missed: watch::Sender::new(0),
            on_trouble: route.on_trouble.clone(),
            #[cfg(feature = "near")]
            tracked: Arc::default(),
        });
        let on_push: OnPush = {
            // Weak, because the connection holds this, and `PubSub` holds the connection.
            let shared = Arc::downgrade(&shared);
            Arc::new(move |info| {
                if let Some(shared) = shared.upgrade() {
                    shared.received(info);
                }
            })
        };
        // Of its own, so that a wake-up does not queue behind large values.
        let link = Connection::new(ConnectionConfig {
            on_push: Some(on_push),
            ..route
        });
        Self {
            keeper: Background::by(link.spawner()),
            link,
            shared,
        }
    }

    /// Subscribes `channel` once. From then on `listener` receives its messages, also over
    /// reconnects.
    ///
    /// # Errors
    /// `Unreachable` if another server serves the channel now, or any error of the subscription.
    ///
    /// Cancel safety: safe; a later call completes what a dropped one began.
    pub(crate) async fn listen(
        &self,
        channel: &Key,
        listener: Listener,
        deadline: Instant,
    ) -> Result<()> {
        let name = channel.as_str().to_owned();
        self.link.check();
        // Read before the lock is taken: if this finds that the session stands still, it reports
        // the loss to `received`, which takes the lock.
        let live = self.link.live_epoch();
        let others_listen;
        {
            let mut channels = self.shared.channels();
            if self.keeper.runs() {
                if channels.is_confirmed(&name, live) {
                    return Ok(());
                }
            } else if !channels.listeners.is_empty() {
                // The previous keeper may have stopped while it handled a loss. One more loss makes
                // the next keeper subscribe all channels again.
                channels.losses += 1;
            }
            others_listen = channels.listeners.contains_key(&name);
            // Before the subscription is sent: the first message may come with its reply.
            channels.listeners.entry(name.clone()).or_insert(listener);
            self.keeper
                .ensure(|| keep(Arc::downgrade(&self.link), self.shared.clone()));
        }
        let subscribed = subscribe(&self.link, std::slice::from_ref(&name), deadline).await?;
        let mut channels = self.shared.channels();
        let left = match subscribed.moved.is_empty() {
            true => None,
            false => channels.forget(&name),
        };
        let is_confirmed = channels.confirm(name, subscribed.epoch);
        // Unlocked, because `moved` and `resync` call other code.
        drop(channels);
        if !is_confirmed {
            self.shared.moved();
        }
        if others_listen && left.is_some() {
            // Earlier callers rely on this listener, so it gets the notice. The caller of this call
            // gets the error instead: with the notice as well, it would subscribe again at once.
            self.shared.resync(left.into_iter().collect());
        }
        match is_confirmed {
            true => Ok(()),
            false => Err(elsewhere()),
        }
    }

    /// Whether `channel` is subscribed, as far as known without asking the server.
    pub(crate) fn hears(&self, channel: &Key) -> bool {
        self.link.check();
        let live = self.link.live_epoch();
        let channels = self.shared.channels();
        self.keeper.runs() && channels.is_confirmed(channel.as_str(), live)
    }

    /// Signals, from this call on, when a push of this server may have been missed: the session was
    /// replaced, or the server does not serve a channel, or a slot, any more.
    pub(crate) fn resync(&self) -> Resync {
        Resync(Some(self.shared.missed.subscribe()))
    }

    /// The connection, and what its pushes say about changed keys.
    #[cfg(feature = "near")]
    pub(super) fn tracked(&self) -> (Arc<Connection>, Arc<Tracked>) {
        (self.link.clone(), self.shared.tracked.clone())
    }

    /// Makes all listeners re-check their state.
    pub(crate) fn alert(&self) {
        self.shared.resync(Vec::new());
    }

    /// Ends the present session; the next one subscribes all channels again.
    pub(crate) fn reset(&self) {
        self.link.reset();
    }

    /// Stops listening, because this server does not serve these channels any more. All listeners
    /// receive [`Notice::Resync`], so that they subscribe elsewhere.
    pub(crate) fn retire(&self) {
        self.link.retire();
        #[cfg(feature = "near")]
        self.shared.tracked.loses();
        let mut channels = self.shared.channels();
        let left = channels.listeners.drain().map(|(_, listener)| listener);
        let left = left.collect();
        channels.confirmed.clear();
        drop(channels);
        self.shared.resync(left);
    }
}

impl Resync {
    /// A signal that never comes: there are no pushes, or it is not known yet which server sends
    /// them.
    pub(crate) fn never() -> Self {
        Self(None)
    }

    /// Returns when a push may have been missed.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn needed(&mut self) {
        let heard = match &mut self.0 {
            Some(missed) => missed.changed().await.is_ok(),
            None => false,
        };
        if !heard {
            std::future::pending().await
        }
    }
}

impl Channels {
    /// Notes that the session of `epoch` is subscribed to `channel`. Returns `false` if the server
    /// has already taken the subscription back.
    fn confirm(&mut self, channel: String, epoch: u64) -> bool {
        let listened = self.listeners.contains_key(&channel);
        if listened {
            self.confirmed.insert(channel, epoch);
        }
        listened
    }

    /// Whether the session in use, of epoch `live`, is subscribed to `channel`.
    fn is_confirmed(&self, channel: &str, live: Option<u64>) -> bool {
        live.is_some() && self.confirmed.get(channel).copied() == live
    }

    /// Forgets `channel`, because the server does not serve it any more. Returns its listener.
    fn forget(&mut self, channel: &str) -> Option<Listener> {
        self.confirmed.remove(channel);
        self.listeners.remove(channel)
    }
}

impl Shared {
    /// Handles one push message. It runs on the socket task, so it must not block.
    fn received(&self, info: PushInfo) {
        match info.kind {
            PushKind::Disconnection => {
                #[cfg(feature = "near")]
                self.tracked.loses();
                // Counted and not only signalled: the keeper may be busy, or stand still.
                self.channels().losses += 1;
                self.lost.notify_one();
            }
            PushKind::SMessage | PushKind::Message => {
                let mut parts = info.data.into_iter();
                let (Some(Value::BulkString(channel)), Some(Value::BulkString(message))) =
                    (parts.next(), parts.next())
                else {
                    return;
                };
                let Ok(channel) = std::str::from_utf8(&channel) else {
                    return;
                };
                // Cloned, so that the listener does not run under the lock.
                let listener = self.channels().listeners.get(channel).cloned();
                if let Some(listener) = listener {
                    listener(Notice::Message(&message));
                }
            }
            // The server takes a subscription back when the slot of its channel moves away. The
            // listeners re-check, and subscribe at the server that serves the channel by then.
            PushKind::SUnsubscribe => {
                let mut left = None;
                if let Some(Value::BulkString(channel)) = info.data.first()
                    && let Ok(channel) = std::str::from_utf8(channel)
                {
                    left = self.channels().forget(channel);
                }
                self.moved();
                self.resync(left.into_iter().collect());
            }
            #[cfg(feature = "near")]
            PushKind::Invalidate => self.tracked.received(info.data),
            _ => {}
        }
    }

    /// Whether all channels were subscribed again since the last loss.
    fn is_whole(&self) -> bool {
        let channels = self.channels();
        channels.losses == channels.made_good
    }

    /// All channels, and how many sessions were lost so far.
    fn listened(&self) -> (Vec<String>, u64) {
        let channels = self.channels();
        let names = channels.listeners.keys().cloned().collect();
        (names, channels.losses)
    }

    /// Makes all listeners re-check their state, also those in `left`, whose channels have moved
    /// away.
    fn resync(&self, left: Vec<Listener>) {
        self.missed.send_modify(|missed| *missed += 1);
        // Copied out, so that no listener runs under the lock.
        let listeners: Vec<Listener> = self.channels().listeners.values().cloned().collect();
        for listener in left.into_iter().chain(listeners) {
            listener(Notice::Resync);
        }
    }

    /// Reports that another server serves a channel. Without this it may stay unnoticed for long,
    /// because a holder with a long lease sends no commands meanwhile.
    fn moved(&self) {
        if let Some(on_trouble) = &self.on_trouble {
            on_trouble();
        }
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the channels subscribed. The first subscription spawns it, and it ends with the `PubSub`.
/// If it panics, or its runtime ends, the next [`PubSub::listen`] starts another.
///
/// It compares counts of losses and does not rely on wake-ups, because a wake-up may have gone to
/// an earlier task that stands still.
async fn keep(link: Weak<Connection>, shared: Arc<Shared>) {
    loop {
        while shared.is_whole() {
            shared.lost.notified().await;
        }
        let mut backoff = Backoff::new(BREATH, LONGEST_BREATH, 0.5..1.0);
        let mut left = Vec::new();
        loop {
            let Some(link) = link.upgrade() else { return };
            // The count from before the subscription: a loss during it makes one more round.
            let (names, losses) = shared.listened();
            if names.is_empty() {
                shared.channels().made_good = losses;
                break;
            }
            match subscribe(&link, &names, Instant::now() + SUBSCRIBE_TIMEOUT).await {
                Ok(subscribed) => {
                    let any_moved = !subscribed.moved.is_empty();
                    let mut channels = shared.channels();
                    for name in subscribed.moved {
                        left.extend(channels.forget(&name));
                    }
                    for name in names {
                        channels.confirm(name, subscribed.epoch);
                    }
                    channels.made_good = losses;
                    drop(channels);
                    if any_moved {
                        shared.moved();
                    }
                    break;
                }
                Err(error) => {
                    tracing::debug!(target: "hedgerow::client", %error, "not subscribed again yet");
                }
            }
            // Not held over the pause, so that a dropped client closes its connection at once.
            drop(link);
            tokio::time::sleep(backoff.pause()).await;
        }
        shared.resync(left);
        tracing::info!(target: "hedgerow::client", "subscribed again after a lost push connection");
    }
}

/// The outcome of a subscription.
struct Subscribed {
    /// The epoch of the session that is subscribed.
    epoch: u64,
    /// The channels that another server serves now.
    moved: Vec<String>,
}

/// Subscribes all `names` on one session.
async fn subscribe(
    link: &Arc<Connection>,
    names: &[String],
    deadline: Instant,
) -> Result<Subscribed> {
    let mut pipeline = redis::Pipeline::with_capacity(names.len());
    for name in names {
        pipeline.add_command(redis::cmd("SSUBSCRIBE").arg(name).take());
    }
    let live = link.live(deadline).await?;
    let epoch = live.epoch();
    let (replies, _) = link.send_all_over(live, &pipeline, deadline).await?;
    let mut moved = Vec::new();
    for (name, reply) in names.iter().zip(replies) {
        match reply {
            // One channel that has moved must not keep the others from being heard.
            Value::ServerError(error) if error.code() == "MOVED" => moved.push(name.clone()),
            Value::ServerError(error) => return Err(from_server(&error)),
            _ => {}
        }
    }
    Ok(Subscribed { epoch, moved })
}

fn elsewhere() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "another server serves the channel now",
    )
}

impl fmt::Debug for PubSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels = self.shared.channels();
        f.debug_struct("PubSub")
            .field("link", &self.link)
            .field("listening", &channels.listeners.len())
            .field("confirmed", &channels.confirmed.len())
            .finish()
    }
}

/// How long one try to subscribe again may take.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two tries: about this at first, then twice as long each time, up to the
/// longest.
const BREATH: Duration = Duration::from_millis(20);
const LONGEST_BREATH: Duration = Duration::from_secs(1);
