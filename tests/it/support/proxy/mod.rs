//! A way to a server on which single requests, replies and pushes are lost, late or torn.
//!
//! Invariant: it acts on frames, not on reads: of ten commands in one segment it can lose the
//! third. What no rule means passes unchanged, in order. Each rule counts what it hit, so that a
//! test can show that its fault happened.

mod carry;
mod frames;
mod rule;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use hedgerow::{Client, ClientBuilder};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::server::Server;
use crate::support::topology::{Node, Port};
use carry::{Side, carry};
use rule::Place;
pub use rule::{Act, Request, Rule};

/// Stands between clients and a server; ends, with all of its connections, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    rules: Rules,
    lost: Mutex<Vec<Rule>>,
    accepting: JoinHandle<()>,
    _port: Option<Port>,
}

/// Where the proxy connects to.
#[derive(Clone, Debug)]
enum Upstream {
    Unix(PathBuf),
    Tcp(u16),
}

type Rules = Arc<Mutex<Vec<Rule>>>;

impl Proxy {
    /// On a socket beside that of a private server; in the place of one that stood there before.
    pub fn before(server: &Server) -> Self {
        let upstream = server.url().trim_start_matches("unix://").to_owned();
        let socket = format!("{upstream}.proxy");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("the server's directory");
        let rules = Rules::default();
        let accepting = tokio::spawn(accept_unix(
            listener,
            Upstream::Unix(upstream.into()),
            rules.clone(),
        ));
        Self::new(format!("unix://{socket}"), rules, accepting, None)
    }

    /// On a TCP port of its own before a node's.
    pub async fn before_node(node: &Node) -> Self {
        Self::on_port(Port::free(), node.port()).await
    }

    /// On this port, before a server on that one, which need not be there yet.
    pub async fn on_port(port: Port, upstream: u16) -> Self {
        let address = ("127.0.0.1", port.number());
        let listener = TcpListener::bind(address).await.expect("a free port");
        let rules = Rules::default();
        let upstream = Upstream::Tcp(upstream);
        let accepting = tokio::spawn(accept_tcp(listener, upstream, rules.clone()));
        let url = format!("redis://127.0.0.1:{}", port.number());
        Self::new(url, rules, accepting, Some(port))
    }

    fn new(url: String, rules: Rules, accepting: JoinHandle<()>, port: Option<Port>) -> Self {
        Self {
            url,
            rules,
            lost: Mutex::default(),
            accepting,
            _port: port,
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn builder(&self) -> ClientBuilder {
        Client::builder().url(&self.url)
    }

    /// Acts on requests before the server has them.
    pub fn on(&self, request: Request, act: Act) -> Rule {
        self.rule(Place::Request, request, act)
    }

    /// Acts on what the server says to such requests; counted are the requests.
    pub fn on_reply(&self, request: Request, act: Act) -> Rule {
        self.rule(Place::Reply, request, act)
    }

    /// Acts on what the server pushes (RESP3); its words are those of the push.
    pub fn on_push(&self, push: Request, act: Act) -> Rule {
        self.rule(Place::Push, push, act)
    }

    /// Forgets all rules; frames on which they have begun to act are not set free.
    pub fn clear(&self) {
        self.rules.lock().expect("no panic").clear();
    }

    /// Loses the next reply, and the connection with it.
    pub fn lose_next_reply(&self) {
        let rule = self.on_reply(Request::any(), Act::Reset);
        self.lost.lock().expect("no panic").push(rule);
    }

    /// How many replies were lost by [`lose_next_reply`](Self::lose_next_reply).
    pub fn lost(&self) -> usize {
        let lost = self.lost.lock().expect("no panic");
        lost.iter().map(Rule::hits).sum()
    }

    fn rule(&self, place: Place, request: Request, act: Act) -> Rule {
        let rule = Rule::new(place, request, act);
        self.rules.lock().expect("no panic").push(rule.clone());
        rule
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept_unix(listener: UnixListener, upstream: Upstream, rules: Rules) {
    // Ends all connections when it is dropped with this future.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (upstream, rules) = (upstream.clone(), rules.clone());
        connections.spawn(async move {
            if let Some(server) = connect(upstream).await {
                carry(Side::unix(client), server, rules).await;
            }
        });
    }
}

async fn accept_tcp(listener: TcpListener, upstream: Upstream, rules: Rules) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (upstream, rules) = (upstream.clone(), rules.clone());
        connections.spawn(async move {
            if let Some(server) = connect(upstream).await {
                carry(Side::tcp(client), server, rules).await;
            }
        });
    }
}

async fn connect(upstream: Upstream) -> Option<Side> {
    match upstream {
        Upstream::Unix(path) => UnixStream::connect(path).await.ok().map(Side::unix),
        Upstream::Tcp(port) => {
            let stream = TcpStream::connect(("127.0.0.1", port)).await;
            stream.ok().map(Side::tcp)
        }
    }
}
