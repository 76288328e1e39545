//! `Hub`: the push connection. Who waits for something that another process does is told here.
//!
//! Invariant: a channel that [`Hub::listen`] has confirmed is subscribed on every later connection
//! before the epoch moves; so a listener that re-checks its state whenever the epoch moves has
//! missed nothing. Pushes are an accelerator: every waiter has a timer too.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::link::{Link, OnPush, Route, Target};
use crate::error::Result;
use crate::key::Key;
use crate::script::from_server;

/// Called with each message of a channel, on the connection's own task: it must not block.
pub(crate) type Listener = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// The one push connection of a client.
pub(crate) struct Hub {
    link: Arc<Link>,
    shared: Arc<Shared>,
}

struct Shared {
    channels: Mutex<Channels>,
    lost: Notify,
    /// Moves when a new connection has all channels subscribed again.
    epoch: watch::Sender<u64>,
}

#[derive(Default)]
struct Channels {
    listeners: HashMap<String, Listener>,
    /// Channels that the present connection is subscribed to.
    confirmed: HashSet<String>,
    keeper: Option<JoinHandle<()>>,
}

impl Hub {
    pub(crate) fn new(target: Target, name: String, connect_timeout: Duration) -> Self {
        let shared = Arc::new(Shared {
            channels: Mutex::default(),
            lost: Notify::new(),
            epoch: watch::Sender::new(0),
        });
        let on_push: OnPush = {
            let shared = Arc::downgrade(&shared);
            Arc::new(move |info| {
                if let Some(shared) = shared.upgrade() {
                    shared.received(info);
                }
            })
        };
        let link = Link::new(Route {
            target,
            name,
            connect_timeout,
            on_push: Some(on_push),
        });
        Self { link, shared }
    }

    /// Subscribes `channel`, once; `listener` hears its messages from then on, over reconnects.
    ///
    /// Cancel safety: safe; a later call completes what a dropped one began.
    pub(crate) async fn listen(
        &self,
        channel: &Key,
        listener: Listener,
        deadline: Instant,
    ) -> Result<()> {
        let name = channel.as_str().to_owned();
        {
            let mut channels = self.shared.channels();
            if !channels.keeper_runs() {
                // The runtime of the old connection may be gone without a word.
                channels.confirmed.clear();
            }
            if channels.confirmed.contains(&name) {
                return Ok(());
            }
            channels.listeners.entry(name.clone()).or_insert(listener);
            if !channels.keeper_runs() {
                let keeper = keep(Arc::downgrade(&self.link), self.shared.clone());
                channels.keeper = Some(tokio::spawn(keeper));
            }
        }
        subscribe(&self.link, std::slice::from_ref(&name), deadline).await?;
        self.shared.channels().confirmed.insert(name);
        Ok(())
    }

    /// Whether `channel` is subscribed, as far as known without asking.
    pub(crate) fn hears(&self, channel: &Key) -> bool {
        let channels = self.shared.channels();
        channels.keeper_runs() && channels.confirmed.contains(channel.as_str())
    }

    /// Changes each time a new connection has taken over.
    pub(crate) fn epoch(&self) -> watch::Receiver<u64> {
        self.shared.epoch.subscribe()
    }
}

impl Channels {
    fn keeper_runs(&self) -> bool {
        self.keeper
            .as_ref()
            .is_some_and(|keeper| !keeper.is_finished())
    }
}

impl Shared {
    fn received(&self, info: PushInfo) {
        match info.kind {
            PushKind::Disconnection => {
                self.channels().confirmed.clear();
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
                let listener = self.channels().listeners.get(channel).cloned();
                if let Some(listener) = listener {
                    listener(&message);
                }
            }
            // The server takes a subscription back when the slot of its channel moves away.
            PushKind::SUnsubscribe => self.lost.notify_one(),
            _ => {}
        }
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the channels subscribed: spawned with the first subscription, it ends with the hub (or
/// with its runtime, after which the next [`Hub::listen`] starts another).
async fn keep(link: Weak<Link>, shared: Arc<Shared>) {
    loop {
        shared.lost.notified().await;
        let mut breath = BREATH;
        loop {
            let Some(link) = link.upgrade() else { return };
            let names: Vec<String> = shared.channels().listeners.keys().cloned().collect();
            match subscribe(&link, &names, Instant::now() + PATIENCE).await {
                Ok(()) => {
                    shared.channels().confirmed.extend(names);
                    break;
                }
                Err(error) => {
                    tracing::debug!(target: "hedgerow::client", %error, "not subscribed again yet");
                }
            }
            drop(link);
            tokio::time::sleep(breath.mul_f64(rand::random_range(0.5..1.0))).await;
            breath = (breath * 2).min(LONGEST_BREATH);
        }
        shared.epoch.send_modify(|epoch| *epoch += 1);
        tracing::info!(target: "hedgerow::client", "subscribed again after a lost push connection");
    }
}

/// Subscribes all `names` on one connection.
async fn subscribe(link: &Arc<Link>, names: &[String], deadline: Instant) -> Result<()> {
    let mut pipeline = redis::Pipeline::with_capacity(names.len());
    for name in names {
        pipeline.add_command(redis::cmd("SSUBSCRIBE").arg(name).take());
    }
    for reply in link.send_all(&pipeline, deadline).await? {
        if let Value::ServerError(error) = reply {
            return Err(from_server(&error));
        }
    }
    Ok(())
}

impl Drop for Hub {
    /// Lets the keeper find that the link is gone.
    fn drop(&mut self) {
        self.shared.lost.notify_one();
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels = self.shared.channels();
        f.debug_struct("Hub")
            .field("link", &self.link)
            .field("listening", &channels.listeners.len())
            .field("confirmed", &channels.confirmed.len())
            .finish()
    }
}

/// How long one attempt to subscribe again may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause between two attempts, about, at first; then twice as long each time.
const BREATH: Duration = Duration::from_millis(20);
const LONGEST_BREATH: Duration = Duration::from_secs(1);
