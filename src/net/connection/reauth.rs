//! Re-authentication: shows the server fresh credentials on a session before the old ones expire.
//!
//! Invariant: a session is not used for long after the credentials that the server was last shown
//! on it have expired. Credentials are never logged.
//!
//! [`connect`](super::connect) starts the task for a session whose credentials expire.

use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::in_flight::InFlight;
use super::{Connection, Session};
use crate::net::credentials::{Credentials, Login};
use crate::time::{Backoff, jittered};

/// A session whose credentials expire, without keeping it open.
struct Expiring {
    connection: MultiplexedConnection,
    epoch: u64,
    // Weak, so that this task does not keep the session alive.
    health: Weak<InFlight>,
    login: Login,
    name: String,
}

/// The credentials were not replaced in time, or the connection is closed.
struct Expired;

/// Starts the task that re-authenticates `live`, if the credentials that the server was shown on it
/// expire. The task ends with the session. If it panics, the server closes the session when the
/// credentials expire.
pub(crate) fn start(link: &Arc<Connection>, live: &Session) {
    let source = &link.route.source;
    let (Some(expires), Some(login)) = (live.health.expires(), source.login()) else {
        return;
    };
    let expiring = Expiring {
        connection: live.connection.clone(),
        epoch: live.epoch,
        health: Arc::downgrade(&live.health),
        login: login.clone(),
        name: link.route.name.clone(),
    };
    let link = Arc::downgrade(link);
    live.health
        .renewal()
        .ensure(|| renew(link, expiring, expires));
}

/// Re-authenticates the session until it ends, or until its credentials have expired.
async fn renew(link: Weak<Connection>, mut expiring: Expiring, mut expires: Instant) {
    loop {
        let left = expires.saturating_duration_since(Instant::now());
        tokio::time::sleep(jittered(left, WHEN).max(SHORTEST)).await;
        // The session is given up a little before the end, so that calls under way are answered
        // before the server closes it.
        let end = expires.checked_sub(MARGIN.min(left / 20));
        match expiring.renewed(end.unwrap_or(expires)).await {
            Ok(Some(next)) => expires = next,
            Ok(None) => return,
            Err(Expired) => break,
        }
    }
    let Some(link) = link.upgrade() else { return };
    tracing::warn!(target: "hedgerow::client", connection = expiring.name, epoch = expiring.epoch, "the credentials of the connection expire, and there are no others; giving it up");
    link.expire(expiring.epoch);
}

impl Expiring {
    /// Shows the server fresh credentials, and retries until `end`. Returns when they expire.
    async fn renewed(&mut self, end: Instant) -> Result<Option<Instant>, Expired> {
        let mut backoff = Backoff::new(SHORTEST, LONGEST, 0.5..1.0);
        while Instant::now() < end {
            let why = match timeout_at(end, self.shown()).await {
                Ok(Ok(expires)) => {
                    tracing::debug!(target: "hedgerow::client", connection = self.name, epoch = self.epoch, "re-authenticated");
                    return Ok(expires);
                }
                Ok(Err(why)) => why,
                Err(_) => "there was no answer in time".to_owned(),
            };
            tracing::warn!(target: "hedgerow::client", connection = self.name, epoch = self.epoch, why, "not re-authenticated yet");
            sleep_until(end.min(Instant::now() + backoff.pause())).await;
        }
        Err(Expired)
    }

    /// Shows the server fresh credentials once. Returns when they expire.
    async fn shown(&mut self) -> Result<Option<Instant>, String> {
        let fresh = self.login.credentials().await;
        let Credentials {
            user,
            password,
            expires,
        } = fresh.map_err(|error| error.to_string())?;
        let mut auth = redis::cmd("AUTH");
        if let Some(user) = user {
            auth.arg(user);
        }
        auth.arg(password);
        let Some(health) = self.health.upgrade() else {
            return Err("the connection is closed".to_owned());
        };
        // Through `answer`, so that the watchdog sees that a reply is due.
        let sent = pin!(Some(self.connection.send_packed_command(&auth)));
        let reply = health.answer(sent, Instant::now() + AUTH_TIMEOUT).await;
        let reply = reply.map(|(reply, _)| reply);
        match reply.map_err(|error| error.to_string())? {
            // Only the code of the error: a server that does not know a command quotes its
            // arguments, and here one is the password.
            Value::ServerError(error) => Err(format!("the server answers {}", error.code())),
            _ => Ok(expires),
        }
    }
}

impl Connection {
    /// Gives up the session of `epoch`, which the server is about to close. Calls that wait for an
    /// answer on a session for commands may still get it.
    fn expire(&self, epoch: u64) {
        match &self.route.on_push {
            // It serves only pushes. Its end makes its owner subscribe again on the next session.
            Some(_) if self.epoch() == epoch => self.reset(),
            _ => self.abandon(epoch, None),
        }
    }
}

/// When the server is shown fresh credentials, as a part of the time that the old ones last. The
/// rest of the time is for retries while the provider is out.
// A range, so that the connections of a client do not all ask at once.
const WHEN: Range<f64> = 0.7..0.8;

/// The shortest and the longest pause between retries while the provider, or the server, fails.
// Also the shortest wait before a renewal, for a provider whose credentials have already expired.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// How long before its credentials expire a session is given up, at most.
const MARGIN: Duration = Duration::from_secs(1);

/// How long the server may take to answer.
const AUTH_TIMEOUT: Duration = Duration::from_secs(5);
