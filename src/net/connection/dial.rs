//! Dialling: from an [`Endpoint`] to a socket that has completed `HELLO 3`.
//!
//! The steps are: resolve the name, connect, the TLS handshake if there is one, ask for
//! credentials, and the handshake of Redis. Each step has an error of its own for the case that it
//! does not end.
//!
//! Invariant: an error here means that no command of a caller was executed, because a handshake is
//! not one. The task that reads and writes the socket ends with its [`SocketTask`], so a session
//! that was given up leaves no socket behind.
//!
//! [`connect`](super::connect) calls it for each attempt.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, RedisError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::backoff::ConnectRate;
use super::connecting::Connecting;
use super::in_flight::{InFlight, SocketTask};
use super::race;
use crate::background::Spawner;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::net::address::Address;
use crate::net::credentials::{Credentials, Login};
use crate::net::endpoint::Endpoint;
use crate::net::stream::bounded::Bounded;
use crate::net::stream::tapped::Tapped;
use crate::wire::fault::{from_driver, too_many_clients};

/// Ends the session when its socket task ends, also with its runtime.
struct Ends(Weak<InFlight>);

/// Opens a socket to `endpoint` and completes the handshake. `health` learns when the socket ends,
/// and counts the bytes that it moves.
///
/// Cancel safety: dropping the future closes what it had opened.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    config: AsyncConnectionConfig,
    health: &Arc<InFlight>,
    pace: &ConnectRate,
    attempt: &Connecting,
) -> Result<(MultiplexedConnection, SocketTask)> {
    match &endpoint.address {
        Address::Tcp(host, port) => {
            // Resolved at each attempt: after a failover the name may lead elsewhere.
            let found = attempt.step(not_resolved, race::found(host, *port));
            let found = found.await?.map_err(no_connection)?;
            let stream = race::connected(found, attempt.failed_before());
            let stream = attempt.step(not_accepted, stream).await?;
            let stream = stream.map_err(no_connection)?;
            tune(&stream).map_err(no_connection)?;
            #[cfg(feature = "tls")]
            if let Some(tls) = &endpoint.tls {
                // Progress counts the bytes of the socket, so it is below TLS. Replies can only be
                // told apart above it.
                let stream = Tapped::new(stream, health.traffic().clone());
                let secured = tls.secured(host, stream);
                let stream = attempt.step(no_tls_handshake, secured).await??;
                let stream = Tapped::new(stream, Bounded::default());
                return greeted(endpoint, stream, config, health, pace, attempt).await;
            }
            let stream = Tapped::new(stream, (health.traffic().clone(), Bounded::default()));
            greeted(endpoint, stream, config, health, pace, attempt).await
        }
        #[cfg(unix)]
        Address::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path);
            let stream = attempt.step(not_accepted, stream).await?;
            let stream = stream.map_err(no_connection)?;
            let stream = Tapped::new(stream, (health.traffic().clone(), Bounded::default()));
            greeted(endpoint, stream, config, health, pace, attempt).await
        }
        #[cfg(not(unix))]
        Address::Unix(_) => Err(Error::new(
            ErrorKind::Unreachable,
            "there are no Unix sockets on this system",
        )),
    }
}

/// Turns Nagle's algorithm off, and lets the kernel find out that a silent peer is gone.
fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5));
    let socket = socket2::SockRef::from(stream);
    // Keepalive does not probe while sent bytes are unacknowledged; this covers that case.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(10)))?;
    socket.set_tcp_keepalive(&keepalive)
}

/// Completes the handshake of Redis over an open stream.
async fn greeted(
    endpoint: &Endpoint,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    config: AsyncConnectionConfig,
    health: &Arc<InFlight>,
    pace: &ConnectRate,
    attempt: &Connecting,
) -> Result<(MultiplexedConnection, SocketTask)> {
    let mut info = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_skip_set_lib_name()
        .set_db(endpoint.db);
    let mut shown_until = None;
    // The provider is asked only now, when there is a server to show its answer to.
    if let Some(login) = &endpoint.login {
        let credentials = attempt.step(no_credentials_in_time, login.credentials());
        let Credentials {
            user,
            password,
            expires,
        } = credentials.await??;
        shown_until = expires;
        info = info.set_password(password);
        if let Some(user) = user {
            info = info.set_username(user);
        }
    }
    let hello = said_hello(endpoint, &info, stream, config, health, pace);
    let (connection, wire) = attempt.step(no_answer, hello).await??;
    Ok((connection, wire.expiring(shown_until)))
}

/// Lets the driver make the handshake, and spawns the socket task.
async fn said_hello(
    endpoint: &Endpoint,
    info: &RedisConnectionInfo,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    config: AsyncConnectionConfig,
    health: &Arc<InFlight>,
    pace: &ConnectRate,
) -> Result<(MultiplexedConnection, SocketTask)> {
    match MultiplexedConnection::new_with_config(info, stream, config).await {
        Ok((connection, wire)) => {
            let ends = Ends(Arc::downgrade(health));
            // On the runtime of the attempt, because the socket is registered there.
            let wire = Spawner::default().spawn(async move {
                let _ends = ends;
                wire.await
            });
            Ok((connection, SocketTask::new(wire)))
        }
        Err(error) => Err(refused(endpoint, pace, error).await),
    }
}

/// Explains why there was no handshake.
async fn refused(endpoint: &Endpoint, pace: &ConnectRate, error: RedisError) -> Error {
    // The server answered the handshake, perhaps with the greeting of a server that is full.
    if let Some(code) = error.code() {
        if code == "ERR" && !error.detail().unwrap_or_default().contains("max number") {
            // The text is used for `SELECT` only: a server that does not know a command quotes its
            // arguments, and those of `HELLO` include the password.
            if error.to_string().contains("switch database") {
                let message = format!(
                    "{{server}} refuses to select database {}; give the number of one that it has, a \
                     cluster has 0 only",
                    endpoint.db
                );
                return Error::new(ErrorKind::Server, message)
                    .because(format!("SELECT: {}", error.detail().unwrap_or_default()));
            }
            return no_hello();
        }
        return perhaps_rotated(endpoint, from_driver(error));
    }
    // From here on there is no error reply of the server, and only the driver's error tells more.
    if error.kind() == redis::ErrorKind::RESP3NotSupported {
        return no_hello();
    }
    if error.kind() == redis::ErrorKind::AuthenticationFailed {
        return perhaps_rotated(
            endpoint,
            Error::new(
                ErrorKind::Unauthenticated,
                "{server} refuses the credentials; check user and password",
            ),
        );
    }
    #[cfg(feature = "tls")]
    if endpoint.tls.is_some() {
        let explained = crate::net::tls::explained(&error).unwrap_or_else(|| {
            Error::new(
                ErrorKind::Unreachable,
                "{server} ended the connection right after the TLS handshake; does it ask for a client \
                 certificate (`Tls::client_pem`)?",
            )
        });
        return explained.with_source(error);
    }
    // The look below opens a second connection, which counts against the rate, too.
    pace.note();
    if turned_away(&endpoint.address).await {
        return too_many_clients();
    }
    let tcp = matches!(endpoint.address, Address::Tcp(..));
    if tcp && (error.is_connection_dropped() || error.kind() == redis::ErrorKind::Parse) {
        return Error::new(
            ErrorKind::Unreachable,
            "{server} accepts connections and does not answer as a Redis does; does it want TLS \
             (rediss://)?",
        )
        .with_source(error);
    }
    no_connection(error)
}

/// Makes a refusal of credentials retryable if a provider gives them. During a rotation the server
/// may know the new ones before the provider does, so the next answer may be right.
fn perhaps_rotated(endpoint: &Endpoint, error: Error) -> Error {
    let asked = endpoint.login.as_ref().is_some_and(Login::may_change);
    match error.kind() {
        ErrorKind::Unauthenticated if asked => error.with_fate(Fate::NotExecuted),
        _ => error,
    }
}

fn no_credentials_in_time() -> Error {
    Error::new(
        ErrorKind::Unauthenticated,
        "the provider of credentials does not answer within the connect timeout",
    )
    .with_fate(Fate::NotExecuted)
}

/// Whether the server greets a new connection with the `maxclients` error. The server closes the
/// connection right after the greeting, so the handshake often fails before the greeting is read.
async fn turned_away(address: &Address) -> bool {
    let mut greeting = Vec::new();
    let patience = Instant::now() + Duration::from_millis(100);
    let read = async {
        match address {
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.take(64).read_to_end(&mut greeting).await
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await?;
                stream.take(64).read_to_end(&mut greeting).await
            }
            #[cfg(not(unix))]
            Address::Unix(_) => Ok(0),
        }
    };
    // The outcome is ignored: the connection may be reset after the greeting, and what was read
    // counts.
    let _ = timeout_at(patience, read).await;
    greeting.starts_with(b"-ERR max number of clients")
}

fn no_connection(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let source = error.into();
    let cause = reason(&*source);
    let error = Error::new(
        ErrorKind::Unreachable,
        match cause {
            Some(NO_SUCH_NAME) => "cannot connect to {server}; check the host name",
            _ => "cannot connect to {server}; check that it runs and listens there",
        },
    )
    .with_source(source);
    match cause {
        Some(cause) => error.because(cause),
        None => error,
    }
}

/// Why the operating system made no connection, in a few words.
fn reason(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    use std::io::ErrorKind as Io;

    let error = error.downcast_ref::<std::io::Error>()?;
    // `std` has no kind for a failed lookup, so only the text tells.
    if error.to_string().contains("lookup address") {
        return Some(NO_SUCH_NAME);
    }
    Some(match error.kind() {
        Io::ConnectionRefused => "connection refused",
        Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe | Io::UnexpectedEof => {
            "connection closed by the other side"
        }
        Io::NotFound => "no such socket",
        Io::PermissionDenied => "permission denied",
        Io::TimedOut => "timed out",
        Io::HostUnreachable => "host unreachable",
        Io::NetworkUnreachable => "network unreachable",
        Io::AddrNotAvailable => "no local address or port to connect from",
        Io::QuotaExceeded => "too many open files",
        _ => return None,
    })
}

/// The cause if the name of the host has no address.
const NO_SUCH_NAME: &str = "the name cannot be resolved";

fn no_hello() -> Error {
    // Without the server's text: a server that does not know `HELLO` quotes its arguments, which
    // include the password.
    Error::new(
        ErrorKind::Server,
        "{server} refuses the handshake (HELLO 3); Redis 7.0 or Valkey is needed",
    )
}

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(health) = self.0.upgrade() {
            health.end();
        }
    }
}

fn not_resolved() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the host name of {server} is not resolved in time; check the name service",
    )
    .because("timed out")
}

fn not_accepted() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "cannot connect to {server}; is it hung, or behind a firewall?",
    )
    .because("timed out")
}

pub(crate) fn no_answer() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "{server} accepts connections and does not answer; is it hung?",
    )
    .because("timed out")
}

#[cfg(feature = "tls")]
fn no_tls_handshake() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "{server} does not answer the TLS handshake; does it speak TLS on this port?",
    )
    .because("timed out")
}
