//! `Source`: where the connections of a link come from, and what each is told and asked before it
//! is used.
//!
//! Invariant: a connection that was looked up leads to a server that takes itself for a primary.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};

use super::credentials::Login;
use super::endpoint::Endpoint;
use super::topology::Sentinels;
use crate::error::{Error, ErrorKind, Result};
use crate::script::from_server;

/// Where connections come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// Opened as needed.
    Server(Endpoint),
    /// The primary that sentinels name, looked up for each connection.
    Sentinels(Arc<Sentinels>),
    /// Brought by the caller: when it is gone, it is gone.
    Brought(MultiplexedConnection),
}

impl Source {
    /// Who we are there, if the server is told.
    pub(crate) fn login(&self) -> Option<&Login> {
        match self {
            Self::Server(endpoint) => endpoint.login.as_ref(),
            Self::Sentinels(sentinels) => sentinels.login(),
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
            Self::Sentinels(_) => {
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
            (Self::Sentinels(_), Some(role)) if !is_primary(role) => Err(Error::new(
                ErrorKind::ReadOnly,
                "{server}, which the sentinels name as the primary, is a replica",
            )),
            _ => Ok(()),
        }
    }

    /// Returns when there may be another server to connect to.
    pub(crate) async fn news(&self) {
        match self {
            Self::Sentinels(sentinels) => sentinels.news().await,
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
