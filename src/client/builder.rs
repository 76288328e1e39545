//! `ClientBuilder`: what a client may be told before it starts.
//!
//! Invariant: everything is checked before a client exists, and an error never repeats the URL,
//! which may hold a password.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion};
use uuid::Uuid;

use super::lane::Lane;
use super::link::{Link, Route, Target};
use super::push::Hub;
use super::{Client, Core, Deadlines};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Namespace;
use crate::script::Executor;
use crate::ttl::Ttl;

/// Sets up a [`Client`]; made by [`Client::builder`].
#[must_use = "a builder does nothing until `connect` is called"]
pub struct ClientBuilder {
    url: Option<String>,
    namespace: String,
    name: String,
    deadline: Duration,
    cache_deadline: Duration,
    connect_timeout: Duration,
    #[cfg(feature = "embedded")]
    server: Option<super::embedded::Server>,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            url: None,
            namespace: "hr".to_owned(),
            name: "hedgerow".to_owned(),
            deadline: Duration::from_secs(5),
            cache_deadline: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(2),
            #[cfg(feature = "embedded")]
            server: None,
        }
    }
}

impl ClientBuilder {
    /// The server: see [`Client::connect`] for the forms.
    pub fn url(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    /// The prefix of every key, `hr` by default. Clients of different namespaces share nothing.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// The name that `CLIENT LIST` shows for the connections, `hedgerow` by default. Blanks and
    /// control characters are refused.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// How long a call may take in all, retries included: 5 s by default. Cache calls have their
    /// own, see [`cache_deadline`](Self::cache_deadline).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long a cache call may take in all, its loader not counted: 1 s by default.
    pub fn cache_deadline(mut self, deadline: Duration) -> Self {
        self.cache_deadline = deadline;
        self
    }

    /// How long one attempt to connect may take: 2 s by default, never longer than what is left
    /// of the call's deadline.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Checks the settings and makes the client. The first call that needs the server connects.
    ///
    /// # Errors
    /// `InvalidInput` when a setting is not understood.
    ///
    /// # Cancel safety
    /// Does no I/O.
    pub async fn connect(self) -> Result<Client> {
        let url = self
            .url
            .as_deref()
            .ok_or_else(|| invalid("no URL is given; call `url` first"))?;
        let info = parsed(url)?;
        if self.name.is_empty()
            || self
                .name
                .contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(invalid(
                "the client name is empty or has blanks; use printable characters without blanks",
            ));
        }
        let deadlines = self.deadlines()?;
        let connect_timeout = Ttl::new("the connect timeout", self.connect_timeout)?.duration();
        let target = || -> Result<Target> {
            let client = redis::Client::open(info.clone()).map_err(|_| not_understood())?;
            Ok(Target::Server(Box::new(client)))
        };
        let link = Link::new(Route {
            target: target()?,
            name: self.name.clone(),
            connect_timeout,
            on_push: None,
        });
        let hub = Hub::new(target()?, format!("{}-push", self.name), connect_timeout);
        Ok(Client(std::sync::Arc::new(Core {
            namespace: Namespace::new(&self.namespace)?,
            address: info.addr().to_string(),
            process: Uuid::new_v4().simple().to_string(),
            deadlines,
            executor: Executor::new(Lane::new(link)),
            hub: Some(hub),
            rooms: Mutex::new(HashMap::new()),
            #[cfg(feature = "embedded")]
            server: self.server,
        })))
    }

    /// A client over a connection that the caller made, with everything else at its default.
    pub(super) fn over(self, connection: MultiplexedConnection) -> Client {
        let link = Link::new(Route {
            target: Target::Brought(connection),
            name: self.name.clone(),
            connect_timeout: self.connect_timeout,
            on_push: None,
        });
        let namespace = match Namespace::new(&self.namespace) {
            Ok(namespace) => namespace,
            Err(_) => unreachable!("the default namespace is a good one"),
        };
        Client(std::sync::Arc::new(Core {
            namespace,
            address: "a connection of the caller's".to_owned(),
            process: Uuid::new_v4().simple().to_string(),
            deadlines: Deadlines {
                command: self.deadline,
                cache: self.cache_deadline,
            },
            executor: Executor::new(Lane::new(link)),
            hub: None,
            rooms: Mutex::new(HashMap::new()),
            #[cfg(feature = "embedded")]
            server: None,
        }))
    }

    /// Ties the life of an embedded server to the client.
    #[cfg(feature = "embedded")]
    pub(super) fn owning(mut self, server: super::embedded::Server) -> Self {
        self.server = Some(server);
        self
    }

    fn deadlines(&self) -> Result<Deadlines> {
        Ok(Deadlines {
            command: Ttl::new("the deadline", self.deadline)?.duration(),
            cache: Ttl::new("the cache deadline", self.cache_deadline)?.duration(),
        })
    }
}

/// Parses a URL into what the driver needs, with the socket options that it leaves off.
fn parsed(url: &str) -> Result<ConnectionInfo> {
    if url.starts_with("rediss://") || url.starts_with("valkeys://") {
        return Err(invalid("TLS is not built in; use redis:// or unix://"));
    }
    let info = url.into_connection_info().map_err(|_| not_understood())?;
    if !matches!(
        info.addr(),
        ConnectionAddr::Tcp(..) | ConnectionAddr::Unix(_)
    ) {
        return Err(not_understood());
    }
    let settings = info
        .redis_settings()
        .clone()
        .set_protocol(ProtocolVersion::RESP3)
        .set_skip_set_lib_name();
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5));
    Ok(info.set_redis_settings(settings).set_tcp_settings(
        TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(keepalive),
    ))
}

/// The URL itself is not repeated: it may hold a password.
fn not_understood() -> Error {
    invalid(
        "the URL is not understood; use redis://[user[:password]@]host[:port][/db] or unix:///path",
    )
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("url", &self.url.as_ref().map(|_| "(hidden)"))
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .field("deadline", &self.deadline)
            .field("cache_deadline", &self.cache_deadline)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}
