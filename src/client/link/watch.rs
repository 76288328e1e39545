//! The watchdog of a connection.
//!
//! Invariant: a connection that is silent is given up, and one that nobody uses is not kept open.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, timeout_at};

use super::{Link, Live, disconnection};
use crate::client::health::Health;

/// A connection as its watchdog knows it: without keeping it open.
struct Watched {
    connection: MultiplexedConnection,
    epoch: u64,
    health: Weak<Health>,
}

/// Starts the watchdog of `live`, which ends when nobody uses this connection any more, be it that the
/// link has another by now. A connection that owes replies and has given none for a whole round is
/// asked for a PING; if that is not answered within a round either, it is given up. (TCP alone
/// does not notice a peer that is frozen and still acknowledges.) A push connection owes nothing
/// and is asked every round.
pub(super) fn start(link: &Arc<Link>, live: &Live) {
    let watched = Watched {
        connection: live.connection.clone(),
        epoch: live.epoch,
        health: Arc::downgrade(&live.health),
    };
    tokio::spawn(watch(Arc::downgrade(link), watched));
}

async fn watch(link: Weak<Link>, mut watched: Watched) {
    let mut seen = 0;
    loop {
        tokio::time::sleep(WATCH_ROUND).await;
        let Some(health) = watched.health.upgrade().filter(|health| !health.is_dead()) else {
            return;
        };
        let (replies, owes) = (health.replies(), health.owes());
        let listens = link
            .upgrade()
            .is_some_and(|link| link.route.on_push.is_some());
        if replies != seen || !(owes || listens) {
            seen = replies;
            continue;
        }
        drop(health);
        let ping = redis::cmd("PING");
        let pong = timeout_at(
            Instant::now() + WATCH_ROUND,
            watched.connection.send_packed_command(&ping),
        );
        let alive = matches!(pong.await, Ok(Ok(_)));
        let Some(health) = watched.health.upgrade() else {
            return;
        };
        if alive || health.replies() != seen {
            continue;
        }
        health.end();
        let Some(link) = link.upgrade() else { return };
        tracing::warn!(target: "hedgerow::client", connection = link.route.name, address = link.address().as_deref(), epoch = watched.epoch, "the connection is silent; giving it up");
        link.abandon(watched.epoch, None);
        link.trouble();
        if let Some(on_push) = &link.route.on_push {
            on_push(disconnection());
        }
        return;
    }
}

/// How long a connection may owe a reply before it is asked for a sign of life.
const WATCH_ROUND: Duration = Duration::from_secs(1);
