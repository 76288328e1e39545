//! The watchdog of a connection.
//!
//! Invariant: a connection that is silent is given up, and one that nobody uses is not kept open.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use super::in_flight::InFlight;
use super::{Connection, Session};
use crate::background::Spawner;
use crate::net::stream::traffic::{Moved, Traffic};

/// A connection as its watchdog knows it: without keeping it open.
struct Watched {
    connection: MultiplexedConnection,
    epoch: u64,
    health: Weak<InFlight>,
}

/// Starts the watchdog of `live`, which ends when nobody uses this connection any more, be it that
/// the link has another by now. A connection that owes replies and has moved nothing for a whole
/// round is asked for a PING; if it moves nothing within a round then either, it is given up. (TCP
/// alone does not notice a peer that is frozen and still acknowledges.) A push connection owes
/// nothing and is asked every round. One that the caller brought is the caller's to judge: it
/// cannot be made again, and what it moves is not seen.
pub(crate) fn start(link: &Arc<Connection>, live: &Session) {
    if live.health.is_brought() {
        return;
    }
    let watched = Watched {
        connection: live.connection.clone(),
        epoch: live.epoch,
        health: Arc::downgrade(&live.health),
    };
    // Beside the connection, whose progress it judges: if both stand still, callers notice.
    Spawner::default().spawn(watch(Arc::downgrade(link), watched));
}

async fn watch(link: Weak<Connection>, mut watched: Watched) {
    let mut seen = Moved::default();
    loop {
        tokio::time::sleep(WATCH_ROUND).await;
        let Some(health) = watched.health.upgrade().filter(|health| !health.is_dead()) else {
            return;
        };
        let traffic = health.traffic().clone();
        let owes = health.owes();
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
        if alive || traffic.has_progressed_since(seen) {
            continue;
        }
        let link = link.upgrade();
        if let Some(link) = &link {
            tracing::warn!(target: "hedgerow::client", connection = link.route.name, address = link.address().as_deref(), epoch = watched.epoch, "the connection is silent; giving it up");
            // Before those who wait for answers hear of its end: they ask who has ended it.
            link.abandon(watched.epoch, None);
        }
        health.end();
        if let Some(link) = link {
            link.trouble();
        }
        return;
    }
}

/// How long a sign of life may take. It comes behind all that was written before, of which buffers
/// on the way may hold some MB.
fn patience(traffic: &Traffic) -> Duration {
    let before = traffic.under_way().min(MOST_BUFFERED);
    WATCH_ROUND + Duration::from_millis(before / SLOWEST_BYTES_A_MS)
}

/// As much as buffers on the way hold, about, and how fast they empty at least, in bytes a ms.
const MOST_BUFFERED: u64 = 8 << 20;
const SLOWEST_BYTES_A_MS: u64 = 1 << 10;

/// How long a connection may owe a reply before it is asked for a sign of life.
const WATCH_ROUND: Duration = Duration::from_secs(1);
