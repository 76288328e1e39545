//! Dialling: from an [`Endpoint`] to a connection that has said `HELLO 3`.
//!
//! Invariant: what fails here was not executed, since a handshake is no command of a caller's. The
//! task that reads and writes the socket ends with its [`SocketTask`], so that a connection which
//! was given up leaves no socket behind.

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

/// Notes the end of the connection when its task ends, be it with its runtime.
struct Ends(Weak<InFlight>);

/// Opens a connection to `endpoint`. `health` is told when it ends, and of the bytes it moves.
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
            let found = attempt.step(not_resolved, race::found(host, *port));
            let found = found.await?.map_err(no_connection)?;
            let stream = race::connected(found, attempt.failed_before());
            let stream = attempt.step(not_accepted, stream).await?;
            let stream = stream.map_err(no_connection)?;
            tune(&stream).map_err(no_connection)?;
            #[cfg(feature = "tls")]
            if let Some(tls) = &endpoint.tls {
                // Its bytes are those of the socket; its replies can be told apart above only.
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

/// Sends what is written at once, and has the kernel find out that a silent peer is gone.
fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5));
    let socket = socket2::SockRef::from(stream);
    // Keepalive is silent while bytes of ours are not acknowledged.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(10)))?;
    socket.set_tcp_keepalive(&keepalive)
}

/// Says hello over an open stream.
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
    // A provider is asked when there is somebody to show its answer to.
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
            // Beside the attempt, whose runtime the socket belongs to.
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
    // The handshake was answered, be it by the greeting of a server that is full.
    if let Some(code) = error.code() {
        if code == "ERR" && !error.detail().unwrap_or_default().contains("max number") {
            // Not repeated: a server that does not know the command repeats its arguments.
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

/// Where credentials are asked for, the next ones may be right: while they are rotated, the server
/// may know of it before the provider does.
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

/// Whether the server greets a new connection with the `maxclients` error. It closes at once
/// after that, so the handshake often fails before the greeting is read.
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
    // The connection may be reset after the greeting: what was read counts, not how it ended.
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
    // The name is looked up by the system, which has no kind of its own for that.
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

/// The cause where there is no address to connect to.
const NO_SUCH_NAME: &str = "the name cannot be resolved";

fn no_hello() -> Error {
    // Not repeated: a server that does not know the command repeats its arguments.
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
