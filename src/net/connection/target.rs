//! `Target`: where the connections of a link come from, and what each is told and asked before it
//! is used.
//!
//! Invariant: a connection that was looked up leads to a server that takes itself for a primary.

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

/// Where connections come from.
#[derive(Clone)]
pub(crate) enum Target {
    /// Opened as needed.
    Server(Endpoint),
    /// The primary, looked up for each connection.
    Located(Arc<dyn Locate>),
    /// Brought by the caller: when it is gone, it is gone.
    Brought(MultiplexedConnection),
}

/// Finds the primary for a connection, and says when it has moved. What watches the sentinels
/// implements it.
pub(crate) trait Locate: Send + Sync {
    /// Where the primary is now, by those who answer before `deadline`.
    ///
    /// Cancel safety: safe.
    fn primary(self: Arc<Self>, deadline: Instant) -> BoxFuture<'static, Result<Endpoint>>;

    /// Whether the primary is at `address`, as far as known.
    fn names(&self, address: &Address) -> bool;

    /// Returns when the primary is known to be elsewhere than at `address`.
    fn left<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, ()>;

    /// Returns when something new is known.
    fn news(&self) -> BoxFuture<'_, ()>;

    /// Who the client is at the primary.
    fn login(&self) -> Option<&Login>;

    /// Whether what is sent to the primary can be read on the way, as far as known.
    fn is_readable_on_the_way(&self) -> bool;
}

impl Target {
    /// Who we are there, if the server is told.
    pub(crate) fn login(&self) -> Option<&Login> {
        match self {
            Self::Server(endpoint) => endpoint.login.as_ref(),
            Self::Located(locator) => locator.login(),
            Self::Brought(_) => None,
        }
    }

    /// What a new connection named `name` is told and asked; nothing if it was brought.
    pub(crate) fn hello(&self, name: &str) -> Option<Pipeline> {
        let mut hello = Pipeline::with_capacity(2);
        // A user without the right to name the connection is served all the same.
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

    /// Whether a connection that has answered so may be used.
    pub(crate) fn accept(&self, replies: &[Value]) -> Result<()> {
        for (place, reply) in replies.iter().enumerate() {
            match reply {
                Value::ServerError(error) if error.code() == "NOAUTH" || place > 0 => {
                    return Err(from_server(error));
                }
                _ => {}
            }
        }
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

/// Whether `ROLE` was answered by a primary.
fn is_primary(role: &Value) -> bool {
    let Value::Array(parts) = role else {
        return false;
    };
    matches!(parts.first(), Some(Value::BulkString(name)) if name == b"master")
}
