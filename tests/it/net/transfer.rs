//! Values that take their time on the way: a connection that moves bytes is not silent.

use std::time::Duration;

use bytes::Bytes;
use hedgerow::{Client, ClientBuilder, Compression};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::topology::{Node, Port, Recipe};

#[tokio::test]
async fn a_value_that_is_read_for_longer_than_a_silence_lasts_arrives() {
    let node = Recipe::new().on(Port::free()).start().await;
    let value = noise();
    let cache = wide(&node).cache("c").compression(Compression::None);
    cache.set("big", &value, MINUTE).await.expect("stored");

    let client = patient(narrow(&node, usize::MAX, RATE).await);
    let cache = client.cache("c").compression(Compression::None);
    let found = cache.get::<Bytes>("big").await.expect("it arrives");
    assert!(found.is_some_and(|found| *found == value));
    assert_eq!(connections(&node).await, 1, "one connection serves it");
}

#[tokio::test]
async fn a_value_that_is_written_for_longer_than_a_silence_lasts_arrives() {
    let node = Recipe::new().on(Port::free()).start().await;
    let value = noise();
    let client = patient(narrow(&node, RATE, usize::MAX).await);
    let cache = client.cache("c").compression(Compression::None);
    cache.set("big", &value, MINUTE).await.expect("it arrives");
    let found = wide(&node).cache("c").get::<Bytes>("big").await;
    assert!(found.expect("read").is_some_and(|found| *found == value));
}

/// How many connections of clients the server has seen that were named, beside the one that asks.
async fn connections(node: &Node) -> usize {
    let list: String = node.run(&["CLIENT", "LIST"]).await;
    let ids = list.lines().filter(|line| line.contains("name=narrow "));
    ids.count()
}

fn wide(node: &Node) -> Client {
    patient(Client::builder().url(&node.url()))
}

fn patient(builder: ClientBuilder) -> Client {
    let client = builder.deadline(MINUTE).cache_deadline(MINUTE).open();
    client.expect("a good URL")
}

/// By a way to the node that lets so many bytes a second through, up and down.
async fn narrow(node: &Node, up: usize, down: usize) -> ClientBuilder {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let to = node.port();
    tokio::spawn(async move {
        let mut ways = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", to))
                .await
                .expect("it runs");
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            ways.spawn(pump(from_client, to_server, up));
            ways.spawn(pump(from_server, to_client, down));
        }
    });
    let builder = Client::builder().url(&format!("redis://127.0.0.1:{port}"));
    builder.name("narrow")
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    rate: usize,
) {
    let mut bytes = vec![0; 64 << 10];
    let mut free = Instant::now();
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        free = free.max(Instant::now()) + Duration::from_secs_f64(read as f64 / rate as f64);
        tokio::time::sleep_until(free).await;
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// Bytes that take five seconds on their way.
fn noise() -> Bytes {
    let mut state = 1_u32;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    bytes.take(5 * RATE).collect()
}

const RATE: usize = 3 << 20;
const MINUTE: Duration = Duration::from_secs(60);
