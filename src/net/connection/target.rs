//! `Target`: where the sessions of a connection lead, and how each is opened and checked before it
//! is used.
//!
//! Invariant: if the server was looked up, a session is used only if that server says that it is a
//! primary.
//!
//! [`connect`](super::connect) follows it; the topologies make it.

use std::sync::Arc;

use futures::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::net::address::Address;
use crate::net::credentials::Login;
use crate::net::endpoint::Endpoint;
use crate::wire::fault::from_server;

/// Where sessions lead.
#[derive(Clone)]
pub(crate) enum Target {
    /// To one server, dialled as needed.
    Server(Endpoint),
    /// To the primary, looked up for each session.
    Located(Arc<dyn Locate>),
    /// Over the connection that the caller brought. It cannot be opened again.
    Brought(MultiplexedConnection),
}

/// Finds the primary for a session, and reports when it has moved. The watcher of the sentinels
/// implements it.
pub(crate) trait Locate: Send + Sync {
    /// Where the primary is now, as answered before `deadline`.
    ///
    /// Cancel safety: safe.
    fn primary(self: Arc<Self>, deadline: Instant) -> BoxFuture<'static, Result<Endpoint>>;

    /// Whether the primary is at `address`, as far as known.
    fn names(&self, address: &Address) -> bool;

    /// Returns when the primary is known not to be at `address`.
    fn left<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, ()>;

    /// Returns when there is new information about the primary.
    fn news(&self) -> BoxFuture<'_, ()>;

    /// The credentials for the primary, if there are any.
    fn login(&self) -> Option<&Login>;

    /// Whether commands to the primary travel unencrypted to another machine, as far as known.
    fn is_readable_on_the_way(&self) -> bool;
}

impl Target {
    /// The credentials that the server is shown, if there are any.
    pub(crate) fn login(&self) -> Option<&Login> {
        match self {
            Self::Server(endpoint) => endpoint.login.as_ref(),
            Self::Located(locator) => locator.login(),
            Self::Brought(_) => None,
        }
    }

    /// The opening commands of a new session named `name`, or `None` if the caller brought the
    /// connection.
    pub(crate) fn hello(&self, name: &str) -> Option<Pipeline> {
        let mut hello = Pipeline::with_capacity(2);
        // `accept` ignores an error of this one (except `NOAUTH`): a user without the right to name
        // the connection is still served.
        hello.cmd("CLIENT").arg("SETNAME").arg(name);
        match self {
            Self::Server(_) => {}
            Self::Located(_) => {
                hello.cmd("ROLE");
            }
            Self::Brought(_) => return None,
        }
        Some(hello)
    }

    /// Checks whether a session with these replies may be used.
    pub(crate) fn accept(&self, replies: &[Value]) -> Result<()> {
        for (place, reply) in replies.iter().enumerate() {
            match reply {
                Value::ServerError(error) if error.code() == "NOAUTH" || place > 0 => {
                    return Err(from_server(error));
                }
                _ => {}
            }
        }
        // Sentinels may still name a server that was demoted, so its own word counts.
        match (self, replies.last()) {
            (Self::Located(_), Some(role)) if !is_primary(role) => Err(Error::new(
                ErrorKind::ReadOnly,
                "{server}, which the sentinels name as the primary, is a replica",
            )),
            _ => Ok(()),
        }
    }

    /// Returns when there may be another server to connect to.
    pub(crate) async fn news(&self) {
        match self {
            Self::Located(locator) => locator.news().await,
            _ => std::future::pending().await,
        }
    }
}

/// Whether this reply to `ROLE` comes from a primary.
fn is_primary(role: &Value) -> bool {
    let Value::Array(parts) = role else {
        return false;
    };
    matches!(parts.first(), Some(Value::BulkString(name)) if name == b"master")
}
