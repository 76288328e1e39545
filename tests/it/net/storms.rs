//! Servers that take connections and refuse them: however many calls there are, a client makes at
//! most ten connections a second, and says why the last was refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use hedgerow::{Client, Error, ErrorKind, client::Credentials};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

use crate::support::topology::{Node, Recipe, Sentinels};
use crate::support::wait::until;

#[tokio::test]
async fn wrong_credentials_are_told_at_once_and_tried_again_in_measure() {
    let server = Recipe::new().password("right").start().await;
    let url = format!("unix://{}", server.socket().display());
    let guess = Credentials::password("wrong");
    for builder in [Client::builder().credentials(guess), Client::builder()] {
        let client = builder.url(&url).open().expect("a good URL");
        let made = || async {
            let made = server.info("stats", "total_connections_received").await;
            made.parse().expect("a figure")
        };
        let storm = storm(&client, made).await;
        storm.is_in_measure();
        assert_eq!(
            storm.last.kind(),
            ErrorKind::Unauthenticated,
            "{}",
            storm.last
        );
        assert!(
            storm.calls > 1000,
            "nobody waits for what is known: {}",
            storm.calls
        );
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_after_its_greeting_is_connected_to_in_measure() {
    for manners in [
        Manners::HangsUpOnHello,
        Manners::GreetsAndHangsUp,
        Manners::ServesOne,
    ] {
        let (client, count) = rude(manners).await;
        let made = || async { count.load(Ordering::SeqCst) };
        let storm = storm(&client, made).await;
        storm.is_in_measure();
        let expected = [ErrorKind::Unreachable, ErrorKind::Disconnected];
        assert!(expected.contains(&storm.last.kind()), "{}", storm.last);
    }
}

#[tokio::test]
async fn a_server_that_speaks_no_redis_is_connected_to_in_measure() {
    let (client, count) = rude(Manners::Refuses).await;
    let storm = storm(&client, || async { count.load(Ordering::SeqCst) }).await;
    storm.is_in_measure();
    assert_eq!(storm.last.kind(), ErrorKind::Server, "{}", storm.last);
}

#[tokio::test]
async fn seeds_that_refuse_are_connected_to_in_measure() {
    for manners in [Manners::Refuses, Manners::HangsUpOnHello] {
        let (mut urls, mut counts) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let count = Arc::new(AtomicUsize::new(0));
            let port = counted(count.clone(), move |stream| serve(stream, manners)).await;
            urls.push(format!("redis://127.0.0.1:{port}"));
            counts.push(count);
        }
        let builder = Client::builder().cluster(&urls);
        let client = builder.deadline(Duration::from_secs(1)).open();
        let client = client.expect("good URLs");
        let most = || async {
            let made = counts.iter().map(|count| count.load(Ordering::SeqCst));
            made.max().expect("there are two")
        };
        let storm = storm(&client, most).await;
        storm.is_in_measure();
    }
}

#[tokio::test]
async fn a_client_that_is_gone_connects_no_more() {
    let (client, count) = rude(Manners::HangsUpOnHello).await;
    let before = Handle::current().metrics().num_alive_tasks();
    let calls = (0..5).map(|_| {
        let counter = client.counter("views");
        let hour = Duration::from_secs(3600);
        tokio::spawn(async move { counter.get().deadline(hour).await })
    });
    let calls: Vec<_> = calls.collect();
    until("several attempts have failed", async || {
        count.load(Ordering::SeqCst) > 3
    })
    .await;
    drop(client);
    for call in calls {
        call.abort();
    }
    until("nothing is at work", async || {
        Handle::current().metrics().num_alive_tasks() <= before
    })
    .await;
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn a_server_whose_certificate_is_not_trusted_is_connected_to_in_measure() {
    use crate::support::topology::{Clients, TlsServer};

    let server = TlsServer::start(Clients::WithCertificate).await;
    let to = server.node.port();
    let count = Arc::new(AtomicUsize::new(0));
    let relay = move |mut client: TcpStream| async move {
        let server = TcpStream::connect(("127.0.0.1", to)).await;
        let mut server = server.expect("it runs");
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    };
    let port = counted(count.clone(), relay).await;
    let client = Client::open(&format!("rediss://127.0.0.1:{port}")).expect("a good URL");
    let storm = storm(&client, || async { count.load(Ordering::SeqCst) }).await;
    storm.is_in_measure();
    assert_eq!(storm.last.kind(), ErrorKind::Tls, "{}", storm.last);
}

#[tokio::test]
async fn sentinels_are_asked_in_measure_where_the_primary_refuses() {
    let servers = Sentinels::start_with(Some("right"), None).await;
    let urls = servers.sentinels().iter().map(Node::url);
    let builder = Client::builder().sentinels(urls, Sentinels::NAME);
    let guess = Credentials::password("wrong");
    let client = builder.credentials(guess).open().expect("good URLs");
    let asked = &servers.sentinels()[0];
    let made = || async {
        let made = asked.info("stats", "total_commands_processed").await;
        made.parse().expect("a figure")
    };
    let storm = storm(&client, made).await;
    // A few for each connection; the sentinels also talk with each other.
    let most = 100 * storm.seconds();
    assert!(storm.made < most, "{} commands", storm.made);
    assert_eq!(
        storm.last.kind(),
        ErrorKind::Unauthenticated,
        "{}",
        storm.last
    );
}

struct Storm {
    calls: usize,
    /// What has become more.
    made: usize,
    took: Duration,
    last: Error,
}

impl Storm {
    fn seconds(&self) -> usize {
        self.took.as_secs() as usize + 2
    }

    fn is_in_measure(&self) {
        let most = 10 * self.seconds();
        assert!((1..=most).contains(&self.made), "{} connections", self.made);
    }
}

/// Calls from many tasks for a while; `made` counts what that leads to.
async fn storm<C: Future<Output = usize>>(client: &Client, made: impl Fn() -> C) -> Storm {
    let (before, began) = (made().await, Instant::now());
    let callers = (0..20).map(|_| {
        let counter = client.counter("views");
        async move {
            let (mut calls, mut last) = (0, None);
            while began.elapsed() < Duration::from_secs(3) {
                last = counter.get().await.err();
                calls += 1;
                tokio::task::yield_now().await;
            }
            (calls, last)
        }
    });
    let told = join_all(callers).await;
    Storm {
        made: made().await - before,
        took: began.elapsed(),
        calls: told.iter().map(|(calls, _)| calls).sum(),
        last: told
            .into_iter()
            .find_map(|(_, last)| last)
            .expect("none is served"),
    }
}

#[derive(Clone, Copy, Debug)]
enum Manners {
    HangsUpOnHello,
    /// Says hello, and hangs up on the first command.
    GreetsAndHangsUp,
    /// The same, on the second.
    ServesOne,
    /// Does not know `HELLO`.
    Refuses,
}

/// A client of such a server, and how many connections that has seen.
async fn rude(manners: Manners) -> (Client, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let port = counted(count.clone(), move |stream| serve(stream, manners)).await;
    let builder = Client::builder().url(&format!("redis://127.0.0.1:{port}"));
    let client = builder.deadline(Duration::from_secs(1)).open();
    (client.expect("a good URL"), count)
}

/// Listens on a port, and counts the connections that `serve` gets.
async fn counted<S>(count: Arc<AtomicUsize>, serve: impl Fn(TcpStream) -> S + Send + 'static) -> u16
where
    S: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream));
        }
    });
    port
}

async fn serve(mut stream: TcpStream, manners: Manners) {
    let mut bytes = vec![0; 4096];
    let mut served = 0;
    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
        let text = String::from_utf8_lossy(&bytes[..read]).to_uppercase();
        let reply: &[u8] = match (text.contains("HELLO"), text.contains("SETNAME"), manners) {
            (true, _, Manners::HangsUpOnHello) => return,
            (true, _, Manners::Refuses) => b"-ERR unknown command 'HELLO'\r\n",
            (true, ..) => b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n",
            (_, true, _) => b"+OK\r\n",
            (_, _, Manners::ServesOne) if served == 0 => {
                served += 1;
                b"$1\r\n1\r\n"
            }
            _ => return,
        };
        if stream.write_all(reply).await.is_err() {
            return;
        }
    }
}
