//! Hosts with several addresses, of which one is dead.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hedgerow::Client;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::topology::{Port, Recipe};

/// `localhost` is ::1 and 127.0.0.1 on this machine.
async fn has_both() -> bool {
    let Ok(found) = tokio::net::lookup_host(("localhost", 1)).await else {
        return false;
    };
    let found: Vec<SocketAddr> = found.collect();
    found.iter().any(SocketAddr::is_ipv4) && found.iter().any(SocketAddr::is_ipv6)
}

#[tokio::test]
async fn a_host_whose_other_address_swallows_connections_is_reached() {
    let node = Recipe::new().on(Port::free()).start().await;
    let hole = BlackHole::dig(node.port()).await;
    if hole.is_none() || !has_both().await {
        eprintln!("localhost has one address here: not tested");
        return;
    }
    let url = format!("redis://localhost:{}", node.port());
    let builder = Client::builder().url(&url).deadline(Duration::from_secs(2));
    // One attempt must do.
    let client = builder.connect_timeout(Duration::from_secs(60)).open();
    client.expect("a good URL").ping().await.expect("an answer");
}

/// An address that neither accepts nor refuses: its queue is full.
struct BlackHole {
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    /// At this port of ::1; nothing where there is no such address.
    async fn dig(port: u16) -> Option<Self> {
        let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let socket = TcpSocket::new_v6().ok()?;
        socket.bind(address).ok()?;
        let listener = socket.listen(1).ok()?;
        let mut waiting = Vec::new();
        let soon = Duration::from_millis(200);
        while let Ok(stream) = tokio::time::timeout(soon, TcpStream::connect(address)).await {
            waiting.push(stream.expect("it is accepted or not"));
            assert!(waiting.len() < 100, "the queue is short");
        }
        assert_ne!(address.ip(), Ipv4Addr::LOCALHOST);
        Some(Self {
            _listener: listener,
            _waiting: waiting,
        })
    }
}
