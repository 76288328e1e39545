//! Large values have a connection of their own: what that keeps from small calls, and what it must
//! not change.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use hedgerow::{Cache, Client, Compression, ErrorKind};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;

use crate::support::server::Server;
use crate::support::topology::command;
use crate::support::wait::{bounded, patient, until};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_value_above_what_the_server_takes_fails_alone_and_says_why() {
    let server = Server::start_with(&["--proto-max-bulk-len", "1mb"]).await;
    let client = server.client().await;
    let cache = plain(&client);
    cache.set("k", &large(b'a'), MINUTE).await.expect("stored");
    let adds = join_all((0..300).map(async |number| {
        let counter = client.counter(&format!("views {number}"));
        for _ in 0..10 {
            counter.add(1).await?;
        }
        Ok::<_, hedgerow::Error>(())
    }));
    let huge = Bytes::from(vec![b'b'; 2 << 20]);
    let set = async { cache.set("k", &huge, MINUTE).await };
    let (adds, set) = bounded("both end", async { tokio::join!(adds, set) }).await;
    for added in adds {
        added.expect("an add has nothing to do with it");
    }
    let error = set.expect_err("the server does not take it");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(!error.is_indeterminate(), "{error}");
    for part in ["proto-max-bulk-len", &server.sockets()[0], "bytes"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let found: Option<Arc<Bytes>> = cache.get("k").await.expect("read");
    assert_eq!(*found.expect("as it was"), large(b'a'));
}

#[tokio::test]
async fn a_value_above_what_the_server_takes_takes_no_other_large_value_along() {
    let server = Server::start_with(&["--proto-max-bulk-len", "1mb"]).await;
    let client = patient(server.builder()).open().expect("a good URL");
    let cache = plain(&client);
    cache.set("k", &large(b'a'), MINUTE).await.expect("stored");
    let huge = Bytes::from(vec![b'b'; 2 << 20]);
    let (refused, other) = (cache.clone(), large(b'c'));
    let huge = async move {
        for _ in 0..5 {
            let error = refused.set("k", &huge, MINUTE).await;
            let error = error.expect_err("the server does not take it");
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        }
    };
    let sets = join_all((0..20).map(async |number| {
        let name = format!("n{number}");
        for _ in 0..5 {
            cache.set(&name, &other, MINUTE).await?;
        }
        Ok::<_, hedgerow::Error>(())
    }));
    let (sets, ()) = bounded("all end", async { tokio::join!(sets, huge) }).await;
    for set in sets {
        set.expect("the server takes it");
    }
}

#[tokio::test]
async fn a_small_call_does_not_wait_for_a_large_reply() {
    let server = Server::start_single().await;
    let way = Way::to(&server).await;
    let client = way.client();
    let cache = plain(&client);
    cache.set("k", &large(b'a'), MINUTE).await.expect("stored");
    read_apart(&server, &cache).await;
    way.replies_held.send_replace(true);
    let get = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get::<Bytes>("k").await }
    });
    let before = way.held();
    until("the reply is on its way", async || way.held() > before).await;
    client.counter("views").add(1).await.expect("added");
    cache.set("small", &1, MINUTE).await.expect("stored");
    assert_eq!(
        cache.get::<i32>("small").await.expect("read").as_deref(),
        Some(&1)
    );
    assert!(!get.is_finished());
    way.replies_held.send_replace(false);
    let found = get.await.expect("no panic").expect("read");
    assert_eq!(*found.expect("it is there"), large(b'a'));
}

#[tokio::test]
async fn a_large_set_that_was_cancelled_does_not_land_after_a_later_remove() {
    let server = Server::start_single().await;
    let way = Way::to(&server).await;
    let client = way.client();
    let cache = plain(&client);
    cache.set("k", &large(b'a'), MINUTE).await.expect("stored");
    way.requests_held.send_replace(true);
    let before = way.held();
    let set = tokio::spawn({
        let cache = cache.clone();
        async move { cache.set("k", &large(b'b'), MINUTE).await }
    });
    until("it is on its way", async || way.held() > before).await;
    set.abort();
    assert!(set.await.is_err_and(|error| error.is_cancelled()));
    cache.remove("k").await.expect("removed");
    way.requests_held.send_replace(false);
    until("it has arrived", async || {
        !server.keys("hr:v:*").await.is_empty()
    })
    .await;
    assert_eq!(cache.get::<Bytes>("k").await.expect("read"), None);
    for (key, left) in server.lives("hr:v:*").await {
        assert!(left > 0, "{key} lives {left} ms");
    }
}

#[tokio::test]
async fn a_large_value_is_read_from_the_server_of_all_other_calls() {
    let (server, other) = (Server::start_single().await, Server::start_single().await);
    // The same generations, so that either value would be taken for a hit.
    let cache = plain(&server.client().await);
    cache.set("k", &large(b'z'), MINUTE).await.expect("stored");
    let mut from = connection(&server).await;
    let mut to = connection(&other).await;
    for key in server.keys("hr:*").await {
        let dump: Bytes = command(&["DUMP", &key])
            .query_async(&mut from)
            .await
            .expect("read");
        let mut restore = command(&["RESTORE", &key, "60000"]);
        let restored = restore.arg(&dump[..]).query_async::<()>(&mut to).await;
        restored.expect("stored");
    }
    cache.set("k", &large(b'a'), MINUTE).await.expect("stored");
    let way = Way::to(&server).await;
    let cache = plain(&way.client());
    assert!(cache.get::<Bytes>("k").await.expect("read").is_some());
    way.lead_to(&other);
    // Whatever is connected from now on leads elsewhere. Only a connection of the client has a
    // name.
    let seen = || async {
        let stats: String = other.run(&["INFO", "commandstats"]).await;
        stats.contains("cmdstat_client|setname:")
    };
    until("it is asked which server that is", async || {
        let found = cache.get::<Bytes>("k").await.expect("read");
        assert_eq!(*found.expect("it is there"), large(b'a'));
        seen().await
    })
    .await;
    for _ in 0..100 {
        let found = cache.get::<Bytes>("k").await.expect("read");
        assert_eq!(*found.expect("it is there"), large(b'a'));
    }
}

/// Reads until that goes by the connection for large values.
async fn read_apart(server: &Server, cache: &Cache) {
    until("it is read on a connection of its own", async || {
        let found = cache.get::<Bytes>("k").await.expect("read");
        assert!(found.is_some());
        let list: String = server.run(&["CLIENT", "LIST"]).await;
        let mut own = list.lines().filter(|line| line.contains("-large "));
        own.any(|line| line.contains("cmd=mget"))
    })
    .await;
}

/// A way to a server, on which connections but the first can be held, and led elsewhere.
struct Way {
    port: u16,
    to: Arc<Mutex<String>>,
    requests_held: watch::Sender<bool>,
    replies_held: watch::Sender<bool>,
    /// How many pieces were held.
    count: Arc<AtomicUsize>,
}

impl Way {
    async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let way = Self {
            port: listener.local_addr().expect("it is bound").port(),
            to: Arc::default(),
            requests_held: watch::Sender::new(false),
            replies_held: watch::Sender::new(false),
            count: Arc::default(),
        };
        way.lead_to(server);
        let (to, count) = (way.to.clone(), way.count.clone());
        let held = (way.requests_held.clone(), way.replies_held.clone());
        tokio::spawn(async move {
            let mut first = true;
            while let Ok((client, _)) = listener.accept().await {
                let to = to.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let server = UnixStream::connect(to).await.expect("it runs");
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let never = watch::Sender::new(false);
                let (up, down) = match std::mem::replace(&mut first, false) {
                    true => (never.clone(), never),
                    false => held.clone(),
                };
                tokio::spawn(pump(from_client, to_server, up.subscribe(), count.clone()));
                tokio::spawn(pump(
                    from_server,
                    to_client,
                    down.subscribe(),
                    count.clone(),
                ));
            }
        });
        way
    }

    fn lead_to(&self, server: &Server) {
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        *to = server.sockets()[0].clone();
    }

    fn client(&self) -> Client {
        let url = format!("redis://127.0.0.1:{}", self.port);
        let client = patient(Client::builder().url(&url)).open();
        client.expect("a good URL")
    }

    fn held(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut held: watch::Receiver<bool>,
    count: Arc<AtomicUsize>,
) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if *held.borrow() {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // Its sender lives as long as the way.
        let _ = held.wait_for(|held| !held).await;
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

async fn connection(server: &Server) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(server.url()).expect("a good URL");
    let connection = client.get_multiplexed_async_connection().await;
    connection.expect("it runs")
}

fn plain(client: &Client) -> Cache {
    client.cache("c").compression(Compression::None)
}

fn large(byte: u8) -> Bytes {
    vec![byte; 200 << 10].into()
}
