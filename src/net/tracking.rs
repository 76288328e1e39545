//! `Tracking`: keeps a server telling this client which cached keys have changed
//! (`CLIENT TRACKING ON BCAST`), on the subscriber connection.
//!
//! Invariant: an epoch begins only when the subscriber connection is proved to lead to the server
//! process that calls are sent to, and it stands only while neither connection has changed since. A
//! look at the server ([`look`]) then shows that nothing that was written before it is still on its
//! way.
//!
//! A near cache asks for the epoch before it reads, and again before it serves. The
//! [`Node`](super::node::Node) has one `Tracking`. Until a near cache asks, it sends nothing.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{Pipeline, Value};
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use super::server_run::server_run;
use super::tracked::{Changed, Tracked};
use crate::background::Background;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::time::Backoff;
use crate::wire::fault::from_server;

/// The tracking of one server.
pub(crate) struct Tracking {
    /// The subscriber connection.
    pushes: Arc<Connection>,
    /// The connection on which values are read.
    commands: Arc<Connection>,
    tracked: Arc<Tracked>,
    /// The task that begins and verifies epochs; see [`keep`].
    keeper: Background,
}

impl Tracking {
    /// Tracks what is read over `commands` by pushes over `pushes`, which reports to `tracked`.
    pub(crate) fn new(
        pushes: Arc<Connection>,
        commands: Arc<Connection>,
        tracked: Arc<Tracked>,
    ) -> Arc<Self> {
        Arc::new(Self {
            keeper: Background::by(pushes.spawner()),
            pushes,
            commands,
            tracked,
        })
    }

    /// Returns the epoch of the session that tracks now, if there is one that was looked at within
    /// `bound`. From then on it reports to `changed`. If there is none, one begins in the
    /// background, and tracks the keys that begin with any of `prefixes`.
    pub(crate) fn epoch<C: Changed + 'static>(
        self: &Arc<Self>,
        changed: &Weak<C>,
        prefixes: &[String],
        bound: Duration,
    ) -> Option<u64> {
        // Before the epoch is read: a key of this epoch must not change unheard.
        self.tracked.pass_to(changed, bound / 2);
        if !self.keeper.runs() {
            // An earlier one may have stopped while it handled a loss.
            self.tracked.loses();
        }
        self.keeper.ensure(|| {
            let prefixes = prefixes.to_vec();
            keep(Arc::downgrade(self), self.tracked.clone(), prefixes)
        });
        let epoch = self.tracked.epoch()?;
        if !self.tracked.began_at(self.changes()) {
            // Calls go over another session, perhaps to another server: the keeper has to find out.
            self.tracked.loses();
            return None;
        }
        self.is_live(epoch, Instant::now(), bound).then_some(epoch)
    }

    /// Whether `epoch` goes on, and the server was looked at within `bound` before `now`.
    pub(crate) fn is_live(&self, epoch: u64, now: Instant, bound: Duration) -> bool {
        let changes = self.changes();
        self.tracked.is_verified(epoch, changes, now, bound)
    }

    /// Whether the server was looked at in `epoch` within `grace` before `now`, and pushes may have
    /// been missed only since. The epoch may be lost, but no other has begun.
    pub(crate) fn was_live(&self, epoch: u64, now: Instant, grace: Duration) -> bool {
        self.tracked.was_verified(epoch, now, grace)
    }

    /// Tells all near caches that this client may have changed `key`.
    pub(crate) fn changed_here(&self, key: &Key) {
        self.tracked.tell(std::iter::once(key.as_str()));
    }

    /// The number of the last change of the connection for commands.
    fn changes(&self) -> u64 {
        self.commands.counted().map_or(0, |it| it.count().changed)
    }

    /// Begins an epoch. Returns how the keeper recognises it.
    async fn begin(&self, prefixes: &[String], within: Duration) -> Result<Begun> {
        let deadline = Instant::now() + within;
        let losses = self.tracked.lost_so_far();
        let (commands, one) = server_run(&self.commands, deadline).await?;
        let changes = self.changes();
        let (pushes, other) = server_run(&self.pushes, deadline).await?;
        if one != other {
            // Sentinels or a name lead there no more.
            self.pushes.reset();
            return Err(changed());
        }
        let live = self.pushes.live(deadline).await?;
        if live.epoch() != pushes {
            return Err(changed());
        }
        let mut command = redis::cmd("CLIENT");
        command.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in prefixes {
            command.arg("PREFIX").arg(prefix);
        }
        let mut both = Pipeline::with_capacity(2);
        // The session may track already, and the server refuses a prefix that is tracked.
        both.cmd("CLIENT").arg("TRACKING").arg("OFF");
        both.add_command(command);
        let (replies, sent) = self.pushes.send_all_over(live, &both, deadline).await?;
        for reply in replies {
            if let Value::ServerError(error) = reply {
                return Err(from_server(&error));
            }
        }
        // The number was read after the session answered, so it belongs to it if that is in use.
        let is_same = self.commands.epoch() == commands && self.commands.is_up();
        if !is_same || self.changes() != changes {
            return Err(changed());
        }
        self.tracked.begins(losses, changes, sent);
        Ok(Begun { pushes, changes })
    }

    /// Asks the server for a sign that it has pushed all that was written before.
    ///
    /// A server pushes at the end of a turn of its event loop, after the replies of that turn. So
    /// the first `PING` may be answered before a push of the same turn. The second is read in a
    /// later turn, and its answer follows all pushes of the turns before.
    async fn look(&self, begun: &Begun, within: Duration) -> Result<()> {
        let asked = Instant::now();
        let Some(epoch) = self.tracked.epoch() else {
            return Err(changed());
        };
        let mut ping = Pipeline::with_capacity(1);
        ping.cmd("PING");
        for _ in 0..2 {
            let live = self.pushes.live(asked + within).await?;
            if live.epoch() != begun.pushes || self.changes() != begun.changes {
                return Err(changed());
            }
            self.pushes
                .send_all_over(live, &ping, asked + within)
                .await?;
        }
        self.tracked.verify(epoch, asked);
        Ok(())
    }
}

/// The sessions that an epoch belongs to.
struct Begun {
    /// The epoch of the subscriber connection.
    pushes: u64,
    /// The number of the last change of the connection for commands.
    changes: u64,
}

/// Keeps the server tracking, over reconnects, while a near cache needs it. The first read of a
/// near cache spawns it. It ends with the `Tracking`, or when no near cache is left. If it panics,
/// no epoch is verified any more, and the next read of a near cache starts another.
async fn keep(tracking: Weak<Tracking>, tracked: Arc<Tracked>, prefixes: Vec<String>) {
    let mut backoff = Backoff::new(BREATH, LONGEST_BREATH, 0.5..1.0);
    loop {
        let Some(every) = tracked.every() else {
            return stop(&tracking, &tracked).await;
        };
        let begun = match tracking.upgrade() {
            Some(tracking) => {
                tracking
                    .begin(&prefixes, every.clamp(SHORTEST_BEGIN, LONGEST_CALL))
                    .await
            }
            None => return,
        };
        let begun = match begun {
            Ok(begun) => begun,
            Err(error) => {
                tracing::debug!(target: "hedgerow::client", %error, "no near cache on this server yet");
                tokio::time::sleep(backoff.pause()).await;
                continue;
            }
        };
        backoff = Backoff::new(BREATH, LONGEST_BREATH, 0.5..1.0);
        while tracked.epoch().is_some() {
            let Some(every) = tracked.every() else {
                return stop(&tracking, &tracked).await;
            };
            // A near cache that is gone must not be told of changes for long.
            let rest = timeout(every.min(LONGEST_REST), tracked.woken()).await;
            let Some(tracking) = tracking.upgrade() else {
                return;
            };
            if rest.is_err()
                && let Err(error) = tracking.look(&begun, every.min(LONGEST_CALL)).await
            {
                tracing::debug!(target: "hedgerow::client", %error, "near values are not verified");
                tracked.loses();
            }
        }
    }
}

/// Ends the pushes, because no near cache is left.
async fn stop(tracking: &Weak<Tracking>, tracked: &Tracked) {
    tracked.loses();
    let Some(tracking) = tracking.upgrade() else {
        return;
    };
    let mut off = Pipeline::with_capacity(1);
    off.cmd("CLIENT").arg("TRACKING").arg("OFF");
    let deadline = Instant::now() + SHORTEST_BEGIN;
    if tracking.pushes.is_up()
        && let Err(error) = tracking.pushes.send_all(&off, deadline).await
    {
        tracing::debug!(target: "hedgerow::client", %error, "pushes are not ended");
    }
}

/// The longest pause between two looks.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// How long a question of the keeper waits at the longest. It keeps the connections of a client
/// that was dropped.
const LONGEST_CALL: Duration = Duration::from_secs(5);

/// The error of an epoch that cannot begin, or is over, because a session has changed.
fn changed() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "a connection to {server} has changed while near values were verified",
    )
}

impl fmt::Debug for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracking")
            .field("pushes", &self.pushes)
            .field("epoch", &self.tracked.epoch())
            .finish_non_exhaustive()
    }
}

/// The pause between two tries to begin: about this at first, then twice as long each time, up to
/// the longest.
const BREATH: Duration = Duration::from_millis(20);
const LONGEST_BREATH: Duration = Duration::from_secs(1);

/// How long one try to begin may take at least.
const SHORTEST_BEGIN: Duration = Duration::from_secs(1);
