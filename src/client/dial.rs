//! Dialling: from an [`Endpoint`] to a connection that has said `HELLO 3`.
//!
//! Invariant: what fails here was not executed, since a handshake is no command of a caller's. The
//! task that reads and writes the socket ends with its [`Wire`], so that a connection which was
//! given up leaves no socket behind.

use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, RedisError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::endpoint::{Address, Credentials, Endpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::script::{from_driver, too_many_clients};

/// The task that moves the bytes of one connection; dropping this ends it and closes the socket.
pub(crate) struct Wire(tokio::task::AbortHandle);

/// Opens a connection to `endpoint`.
///
/// Cancel safety: dropping the future closes what it had opened.
pub(crate) async fn dial(
    endpoint: &Endpoint,
    config: AsyncConnectionConfig,
    until: Instant,
) -> Result<(MultiplexedConnection, Wire)> {
    match timeout_at(until, opened(endpoint, config)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::new(
            ErrorKind::Unreachable,
            "the server accepts no connection in time; is it hung, or behind a firewall?",
        )),
    }
}

async fn opened(
    endpoint: &Endpoint,
    config: AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, Wire)> {
    let login = endpoint.login.clone();
    match &endpoint.address {
        Address::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port))
                .await
                .map_err(no_connection)?;
            tune(&stream).map_err(no_connection)?;
            greeted(endpoint, login, stream, config).await
        }
        #[cfg(unix)]
        Address::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path)
                .await
                .map_err(no_connection)?;
            greeted(endpoint, login, stream, config).await
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
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Says hello over an open stream.
async fn greeted(
    endpoint: &Endpoint,
    login: Option<Credentials>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    config: AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, Wire)> {
    let mut info = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_skip_set_lib_name()
        .set_db(endpoint.db);
    if let Some(Credentials { user, password }) = login {
        info = info.set_password(password);
        if let Some(user) = user {
            info = info.set_username(user);
        }
    }
    match MultiplexedConnection::new_with_config(&info, stream, config).await {
        Ok((connection, wire)) => {
            let wire = Wire(tokio::spawn(wire).abort_handle());
            Ok((connection, wire))
        }
        Err(error) => Err(refused(endpoint, error).await),
    }
}

/// Explains why there was no handshake.
async fn refused(endpoint: &Endpoint, error: RedisError) -> Error {
    // The handshake was answered, be it by the greeting of a server that is full.
    if let Some(code) = error.code() {
        if code == "ERR" && !error.detail().unwrap_or_default().contains("max number") {
            // Not repeated: a server that does not know the command repeats its arguments.
            return Error::new(
                ErrorKind::Server,
                "the server refuses the handshake (HELLO 3); Redis 7.0 or Valkey is needed",
            );
        }
        return from_driver(error);
    }
    if error.kind() == redis::ErrorKind::AuthenticationFailed {
        return Error::new(
            ErrorKind::Unauthenticated,
            "the server refuses the credentials; check user and password",
        );
    }
    if turned_away(&endpoint.address).await {
        return too_many_clients();
    }
    no_connection(error)
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
    Error::new(
        ErrorKind::Unreachable,
        "no connection to the server; is it running at this address?",
    )
    .with_source(error)
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("ended", &self.0.is_finished())
            .finish()
    }
}
