//! The watchdog of a session.
//!
//! A session that owes replies and has moved no bytes for a whole round gets a `PING`. If it moves
//! nothing after that either, it is given up. TCP alone does not notice a peer that is frozen and
//! still acknowledges.
//!
//! Invariant: a silent session is given up, and the watchdog keeps no session open.
//!
//! [`connect`](super::connect) starts one for each session.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use super::in_flight::InFlight;
use super::{Connection, Session};
use crate::background::Spawner;
use crate::net::stream::traffic::{Moved, Traffic};

/// A session as its watchdog knows it, without keeping it open.
struct Watched {
    connection: MultiplexedConnection,
    epoch: u64,
    health: Weak<InFlight>,
}

/// Starts the watchdog of `live`. It ends when nothing uses this session any more, also if the
/// connection has another by now. If it panics, a frozen peer of this session is not noticed.
///
/// A session for pushes owes no replies, so it gets a `PING` in each round in which it moves
/// nothing. A connection that the caller brought has no watchdog: it cannot be opened again, and
/// the bytes that it moves are not seen.
pub(crate) fn start(link: &Arc<Connection>, live: &Session) {
    if live.health.is_brought() {
        return;
    }
    let watched = Watched {
        connection: live.connection.clone(),
        epoch: live.epoch,
        health: Arc::downgrade(&live.health),
    };
    // On the runtime of the session that it judges: if that stands still, both do, and callers
    // notice by the pulse of the socket task.
    Spawner::default().spawn(watch(Arc::downgrade(link), watched));
}

/// Looks once each round until the session has ended, or gives it up.
async fn watch(link: Weak<Connection>, mut watched: Watched) {
    let mut seen = Moved::default();
    loop {
        tokio::time::sleep(WATCH_ROUND).await;
        let Some(health) = watched.health.upgrade().filter(|health| !health.is_dead()) else {
            return;
        };
        let traffic = health.traffic().clone();
        let owes = health.owes();
        // Not held over the PING, or the watchdog would keep the session open.
        drop(health);
        let listens = link
            .upgrade()
            .is_some_and(|link| link.route.on_push.is_some());
        if traffic.has_progressed_since(seen) || !(owes || listens) {
            seen = traffic.moved();
            continue;
        }
        seen = traffic.moved();
        let ping = redis::cmd("PING");
        let pong = watched.connection.send_packed_command(&ping);
        let alive = matches!(timeout(patience(&traffic), pong).await, Ok(Ok(_)));
        let Some(health) = watched.health.upgrade() else {
            return;
        };
        // A large value on a slow network delays the reply, and its bytes are a sign of life, too.
        if alive || traffic.has_progressed_since(seen) {
            continue;
        }
        let link = link.upgrade();
        if let Some(link) = &link {
            tracing::warn!(target: "hedgerow::client", connection = link.route.name, address = link.address().as_deref(), epoch = watched.epoch, "the connection is silent; giving it up");
            // Before `end` wakes the callers: they ask whether this side gave the session up.
            link.abandon(watched.epoch, None);
        }
        health.end();
        if let Some(link) = link {
            link.trouble();
        }
        return;
    }
}

/// How long the reply to the `PING` may take. The `PING` travels behind all that was written before
/// it, and buffers on the way may hold some MB of that.
fn patience(traffic: &Traffic) -> Duration {
    let before = traffic.under_way().min(MOST_BUFFERED);
    WATCH_ROUND + Duration::from_millis(before / SLOWEST_BYTES_A_MS)
}

/// About how many bytes buffers on the way hold, and how fast they empty at least, in bytes per ms.
const MOST_BUFFERED: u64 = 8 << 20;
const SLOWEST_BYTES_A_MS: u64 = 1 << 10;

/// How long a session may owe a reply and move nothing before it gets a `PING`.
const WATCH_ROUND: Duration = Duration::from_secs(1);
