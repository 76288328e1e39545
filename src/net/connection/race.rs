//! A race of the addresses of one host ("happy eyeballs", after RFC 8305).
//!
//! Invariant: an address that swallows packets costs a fraction of a second and not the connect
//! timeout. A host whose first address never answers is still reached.
//!
//! [`dial`](super::dial) calls it for each TCP connect.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};

/// Resolves `host` to its addresses.
pub(crate) async fn found(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(lookup_host((host, port)).await?.collect())
}

/// Connects to a host. It tries each address in `found` a little after the one before, or at once
/// if that one has failed, and the first that accepts wins. An address that accepts may still not
/// answer, so the order is rotated by `failed`, the number of attempts that failed before.
///
/// # Errors
/// The error of the last address that failed, if all have failed.
///
/// Cancel safety: dropping the future closes what it had opened.
pub(crate) async fn connected(found: Vec<SocketAddr>, failed: u32) -> io::Result<TcpStream> {
    let mut waiting = in_order(found, failed as usize).into_iter();
    let mut racing = FuturesUnordered::new();
    let mut last = None;
    loop {
        match waiting.next() {
            Some(address) => racing.push(TcpStream::connect(address)),
            None if racing.is_empty() => return Err(last.unwrap_or_else(no_address)),
            None => {}
        }
        tokio::select! {
            // A result counts before the timer: no further address is tried after a success.
            biased;
            Some(outcome) = racing.next() => match outcome {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            },
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}

/// The distinct addresses in the order in which they are tried: the two families take turns,
/// beginning with the family of the first, and the result is rotated left by `skip`.
fn in_order(found: Vec<SocketAddr>, skip: usize) -> Vec<SocketAddr> {
    let mut distinct: Vec<SocketAddr> = Vec::with_capacity(found.len());
    for address in found {
        if !distinct.contains(&address) {
            distinct.push(address);
        }
    }
    // The resolver prefers the family of its first address, so that family goes first here, too.
    let first_is_v6 = distinct.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = distinct
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut ordered = Vec::new();
    loop {
        let pair = [one.next(), other.next()];
        if pair == [None, None] {
            break;
        }
        ordered.extend(pair.into_iter().flatten());
    }
    let places = ordered.len().max(1);
    ordered.rotate_left(skip % places);
    ordered
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the host has no address")
}

/// How long one address is tried before the next joins it.
const STAGGER: Duration = Duration::from_millis(150);

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;
    #[cfg(target_os = "linux")]
    use tokio::net::TcpSocket;
    use tokio::time::timeout;

    /// Longer than the race may take, and shorter than the system tries a silent address.
    const SOON: Duration = Duration::from_secs(30);

    fn local() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }

    /// An address that neither accepts nor refuses, because its accept queue is full, and what
    /// keeps the queue full. Other systems refuse in that case.
    #[cfg(target_os = "linux")]
    async fn black_hole() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(local()).expect("a port");
        let listener = socket.listen(1).expect("it is bound");
        let address = listener.local_addr().expect("it is bound");
        let mut waiting = Vec::new();
        let pause = Duration::from_millis(200);
        while let Ok(stream) = timeout(pause, TcpStream::connect(address)).await {
            waiting.push(stream.expect("it is accepted or not"));
            assert!(waiting.len() < 100, "the queue is short");
        }
        (address, listener, waiting)
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_host_whose_first_address_swallows_connections_is_reached() {
        let (silent, _listener, _waiting) = black_hole().await;
        let served = TcpListener::bind(local()).await.expect("a port");
        let served = served.local_addr().expect("it is bound");
        let stream = timeout(SOON, connected(vec![silent, served], 0)).await;
        let stream = stream.expect("it does not wait for the first");
        assert_eq!(stream.expect("connected").peer_addr().ok(), Some(served));
    }

    #[tokio::test]
    async fn an_address_that_refuses_does_not_end_the_race_of_the_others() {
        let gone = TcpListener::bind(local()).await.expect("a port");
        let refused = gone.local_addr().expect("it is bound");
        drop(gone);
        let served = TcpListener::bind(local()).await.expect("a port");
        let served = served.local_addr().expect("it is bound");
        let stream = timeout(SOON, connected(vec![refused, served], 0)).await;
        let stream = stream.expect("it ends").expect("connected");
        assert_eq!(stream.peer_addr().ok(), Some(served));
        let none = timeout(SOON, connected(vec![refused], 0)).await;
        let error = none.expect("it ends").expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn families_take_turns_and_each_failed_attempt_begins_at_the_next_address() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let (six, seven) = (address("[::1]:1"), address("[::2]:1"));
        let (four, five) = (address("127.0.0.1:1"), address("127.0.0.2:1"));
        let found = vec![six, seven, six, four, five];
        assert_eq!(in_order(found.clone(), 0), [six, four, seven, five]);
        assert_eq!(in_order(found.clone(), 1), [four, seven, five, six]);
        assert_eq!(in_order(found, 4), [six, four, seven, five]);
        assert_eq!(in_order(Vec::new(), 3), []);
    }
}
