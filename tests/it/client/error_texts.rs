//! The whole text of an error: what happened and where, why, what became of the call, what to do,
//! and for which name. Each condition is brought about for real.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow::{Client, Error, ErrorKind, Outage};
use redis::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::listener::Listener;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, signal};
use crate::support::wait::{bounded, until};

const MINUTE: Duration = Duration::from_secs(60);

/// How long a client tries that is served by nobody.
const SOON: Duration = Duration::from_millis(300);

/// An address where nobody listens.
const NOBODY: &str = "127.0.0.1:1";

fn hasty(url: &str) -> Client {
    let builder = Client::builder().url(url).deadline(SOON);
    let builder = builder.cache_deadline(SOON);
    builder.open().expect("a good URL")
}

/// The server of a test, as errors call it.
fn at(server: &Server) -> String {
    let socket = server.url().trim_start_matches("unix://");
    let socket = match socket.chars().count() {
        0..=64 => socket.to_owned(),
        long => format!("{}..{}", &socket[..31], &socket[long - 31..]),
    };
    format!("the server at {socket}")
}

async fn add(client: &Client) -> Error {
    let added = client.counter("views").add(1).await;
    added.expect_err("not served")
}

/// What `client` is told of an addition.
async fn told(client: &Client) -> String {
    add(client).await.to_string()
}

#[tokio::test]
async fn nobody_listens() {
    for url in [
        format!("redis://{NOBODY}"),
        format!("redis://user:secret@{NOBODY}/3"),
    ] {
        assert_eq!(
            told(&hasty(&url)).await,
            "cannot connect to the server at 127.0.0.1:1: connection refused; nothing was sent; \
             check that it runs and listens there (key \"views\")"
        );
    }
    assert_eq!(
        told(&hasty("unix:///nowhere/s")).await,
        "cannot connect to the server at /nowhere/s: no such socket; nothing was sent; \
         check that it runs and listens there (key \"views\")"
    );
}

#[tokio::test]
async fn the_host_has_no_address() {
    let client = Client::open("redis://nowhere.invalid").expect("a good URL");
    assert_eq!(
        told(&client).await,
        "cannot connect to the server at nowhere.invalid:6379: the name cannot be resolved; \
         nothing was sent; check the host name (key \"views\")"
    );
}

#[tokio::test]
async fn something_listens_and_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("it is bound");
    let client = hasty(&format!("redis://{address}"));
    assert_eq!(
        told(&client).await,
        format!(
            "the server at {address} accepts connections and does not answer: timed out; \
             nothing was sent; is it hung? (key \"views\")"
        )
    );
}

/// Where somebody listens who answers everything with `words`; counts who has come.
async fn stranger(words: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let count = Arc::new(AtomicUsize::new(0));
    let come = count.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a client");
            come.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut heard = [0; 1024];
                while stream.read(&mut heard).await.is_ok_and(|bytes| bytes > 0) {
                    let _ = stream.write_all(words.as_bytes()).await;
                }
            });
        }
    });
    (address.to_string(), count)
}

#[tokio::test]
async fn something_listens_that_is_no_redis() {
    let (address, _) = stranger("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    // Longer than others have: on a busy machine, too, the last attempt is answered in time.
    let client = Client::builder().url(&format!("redis://{address}"));
    let client = client.deadline(Duration::from_secs(3)).open();
    assert_eq!(
        told(&client.expect("a good URL")).await,
        format!(
            "the server at {address} accepts connections and does not answer as a Redis does; \
             nothing was sent; does it want TLS (rediss://)? (key \"views\")"
        )
    );
}

#[tokio::test]
async fn a_server_that_falls_silent() {
    let server = Server::start_single().await;
    let client = hasty(server.url());
    client.counter("other").add(1).await.expect("connected");
    let cache = client.cache("cities");
    let pid = server.pid().await;
    signal(pid, "STOP");
    let write = add(&client).await;
    let read = client.counter("views").get().await.expect_err("silent");
    let hit = cache.get::<String>("42").await.expect_err("silent");
    let lock = client.lock("invoice:7").inspect().await;
    let lock = lock.expect_err("silent");
    signal(pid, "CONT");
    let server = at(&server);
    assert_eq!(
        write.to_string(),
        format!(
            "{server} did not answer before the deadline; sent, no reply: it was applied once or \
             not at all (key \"views\")"
        )
    );
    assert!(write.is_indeterminate() && !write.is_retryable());
    for (read, key) in [(read, "views"), (hit, "42"), (lock, "invoice:7")] {
        assert_eq!(
            read.to_string(),
            format!(
                "{server} did not answer before the deadline; it was a read: nothing was changed \
                 (key \"{key}\")"
            )
        );
        assert_eq!(read.kind(), ErrorKind::Timeout);
        assert!(!read.is_indeterminate() && read.is_retryable(), "{read:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_lost_before_the_reply() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = hasty(proxy.url());
    client.ping().await.expect("an answer");
    proxy.on(Request::every().named("INCRBY"), Act::Reset);
    let address = proxy.url().trim_start_matches("unix://").to_owned();
    let error = add(&client).await;
    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    let text = error.to_string();
    assert!(text.contains(&address), "{text}");
    assert!(
        text.ends_with(
            "was lost before the reply came; sent, no reply: it was applied once or not at all \
             (key \"views\")"
        ),
        "{text}"
    );
}

#[tokio::test]
async fn conditions_of_a_server() {
    let server = Server::start_with(&["--enable-protected-configs", "yes"]).await;
    let client = hasty(server.url());
    client.ping().await.expect("an answer");
    let name = at(&server);

    let _: Value = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(
        told(&client).await,
        format!(
            "{name} is at maxmemory and can evict nothing (OOM); the call was refused; \
             raise maxmemory, or let a server that keeps no locks evict (key \"views\")"
        )
    );
    let _: Value = server.run(&["CONFIG", "SET", "maxmemory", "0"]).await;

    let _: Value = server
        .run(&["CONFIG", "SET", "min-replicas-to-write", "9"])
        .await;
    assert_eq!(
        told(&client).await,
        format!(
            "{name} has too few replicas for a write (NOREPLICAS); the call was refused; \
             see min-replicas-to-write (key \"views\")"
        )
    );
    let _: Value = server
        .run(&["CONFIG", "SET", "min-replicas-to-write", "0"])
        .await;

    server.cannot_save().await;
    assert_eq!(
        told(&client).await,
        format!(
            "{name} refuses writes because it cannot persist (MISCONF); the call was refused; \
             look at its disk and its log (key \"views\")"
        )
    );
    server.saves_nothing().await;

    let _: Value = server.run(&["SET", "hr:c:{views}", "many"]).await;
    assert_eq!(
        told(&client).await,
        format!(
            "the key holds no integer at {name}; the call was refused; something else writes keys of \
         this namespace (key \"views\")"
        )
    );
    let _: Value = server.run(&["DEL", "hr:c:{views}"]).await;

    let _: Value = server.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    assert_eq!(
        told(&client).await,
        format!(
            "{name} is a read-only replica (READONLY); the call was not executed; \
             connect to the primary (key \"views\")"
        )
    );
}

#[tokio::test]
async fn credentials_and_rights() {
    let server = Server::start_single().await;
    let name = at(&server);
    let user = ["ACL", "SETUSER", "app", "on", ">app", "~*", "&*", "+@all"];
    let _: Value = server.run(&[&user[..], &["-incrby"]].concat()).await;
    let _: Value = server.run(&["CONFIG", "SET", "requirepass", "pass"]).await;
    assert_eq!(
        told(&hasty(server.url())).await,
        format!(
            "{name} asks for credentials (NOAUTH); the call was refused; \
             give user and password, in the URL or by ClientBuilder::credentials (key \"views\")"
        )
    );
    assert_eq!(
        told(&hasty(&format!("{}?pass=wrong", server.url()))).await,
        format!(
            "{name} does not accept user and password (WRONGPASS); the call was refused; \
             check the credentials (key \"views\")"
        )
    );
    assert_eq!(
        told(&hasty(&format!("{}?user=app&pass=app", server.url()))).await,
        format!(
            "the ACL user may not do this at {name} (NOPERM); the call was refused; \
             ACL LOG there names the missing rule (key \"views\")"
        )
    );
}

#[tokio::test]
async fn a_database_that_the_server_does_not_have() {
    let server = Server::start_single().await;
    let client = hasty(&format!("{}?db=99", server.url()));
    assert_eq!(
        told(&client).await,
        format!(
            "{} refuses to select database 99: SELECT: DB index is out of range; the call was \
             refused; give the number of one that it has, a cluster has 0 only (key \"views\")",
            at(&server)
        )
    );
}

#[tokio::test]
async fn a_server_without_room_for_a_connection() {
    let server = Server::start_single().await;
    let _: Value = server.run(&["CONFIG", "SET", "maxclients", "1"]).await;
    assert_eq!(
        told(&hasty(server.url())).await,
        format!(
            "{} takes no more connections (maxclients); nothing was sent; \
             raise maxclients or close some (key \"views\")",
            at(&server)
        )
    );
}

#[tokio::test]
async fn a_server_that_does_not_know_hello_is_not_asked_again() {
    // In the words of Redis 5 and of Redis 7.
    let (five, come) = stranger("-ERR unknown command `HELLO`, with args: `3`, \r\n").await;
    let (seven, _) = stranger("-ERR unknown command 'HELLO', with args: '3' \r\n").await;
    for address in [five, seven] {
        let client = Client::builder().url(&format!("redis://{address}"));
        let client = client.deadline(MINUTE).open().expect("a good URL");
        assert_eq!(
            told(&client).await,
            format!(
                "the server at {address} refuses the handshake (HELLO 3); the call was refused; \
                 Redis 7.0 or Valkey is needed (key \"views\")"
            )
        );
    }
    assert_eq!(come.load(Ordering::SeqCst), 1, "it is asked once");
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn a_server_that_speaks_no_tls() {
    let (address, _) = stranger("-ERR unknown command\r\n").await;
    let roots = crate::support::topology::Certificates::make()
        .authority
        .certificate;
    let client = Client::builder()
        .url(&format!("rediss://{address}"))
        .tls(hedgerow::client::Tls::new().roots_pem(roots))
        .deadline(SOON)
        .open();
    assert_eq!(
        told(&client.expect("a good URL")).await,
        format!(
            "TLS with the server at {address} failed: what answers does not speak TLS; \
             nothing was sent; is this the plaintext port? (key \"views\")"
        )
    );
}

#[tokio::test]
async fn an_open_breaker_says_for_whom_and_until_when() {
    let client = hasty(&format!("redis://{NOBODY}"));
    let strict = client.cache("cities");
    let open = || async {
        let error = strict.get::<String>("42").await.expect_err("out");
        (error.kind() == ErrorKind::CircuitOpen).then(|| error.to_string())
    };
    until("the breaker opens", || async { open().await.is_some() }).await;
    let text = bounded("it is open", async {
        loop {
            if let Some(text) = open().await {
                return text;
            }
        }
    })
    .await;
    let (what, rest) = text.split_once(" failures (").expect("how many");
    let start = "not sent: the circuit breaker for 127.0.0.1:1 is open after ";
    let times = what.strip_prefix(start).map(str::parse::<u32>);
    assert!(times.is_some_and(|times| times.is_ok()), "{text}");
    let rest = rest.strip_prefix("connection refused); ").expect("why");
    let known = rest == "a probe is under way (key \"42\")"
        || rest.starts_with("next probe in ") && rest.ends_with(" s (key \"42\")");
    assert!(known, "{text}");
}

#[tokio::test]
async fn an_outage_is_warned_of_once_whatever_the_number_of_connections() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let client = hasty(server.url());
    let cache = client.cache("cities").outage(Outage::Bypass);
    // A miss makes the push connection, too.
    let load = || async { Ok::<_, std::io::Error>(7u8) };
    cache.memoize("42", MINUTE, load).await.expect("loaded");
    let address = server.url().trim_start_matches("unix://").to_owned();
    server.kill().await;
    let (open, again) = ("breaker is open", "not subscribed again yet");
    until("both connections are missed", async || {
        let _ = cache.get::<u8>("42").await;
        let told = listener.told();
        told.contains(open) && told.matches(again).count() >= 8
    })
    .await;
    let told = listener.told();
    let warnings: Vec<&str> = told.lines().filter(|line| line.contains(open)).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains(&address), "{warnings:?}");
}

#[tokio::test]
async fn names_and_texts_of_any_length_are_shortened() {
    let client = hasty(&format!("redis://{NOBODY}"));
    let long = format!("{}{}", "a".repeat(5_000_000), "b".repeat(5_000_000));
    let shown = format!("{}..{}", "a".repeat(31), "b".repeat(31));
    let cache = client.cache("cities");
    let tags: Vec<String> = (0..200).map(|number| format!("tag:{number}")).collect();
    for error in [
        client.counter(&long).add(1).await.expect_err("refused"),
        client
            .lock(&long)
            .acquire()
            .await
            .map(drop)
            .expect_err("refused"),
        cache.get::<String>(&long).await.expect_err("refused"),
        client
            .cache(&long)
            .get::<String>("k")
            .await
            .expect_err("refused"),
        client
            .counter("views")
            .add(1)
            .once(&long, MINUTE)
            .await
            .expect_err("refused"),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let text = error.to_string();
        assert!(text.len() <= 512, "{text}");
        assert!(format!("{error:?}").len() <= 2048, "{error:?}");
        assert!(text.contains(&shown) || text.contains("views"), "{text}");
    }
    let error = cache.invalidate_tags(&tags).await.expect_err("out");
    assert!(error.to_string().len() <= 512, "{error}");
    assert!(
        error.key().is_some_and(|key| key.starts_with("tag:0")),
        "{error}"
    );
    let counter = client.counter(&"é".repeat(200));
    let text = counter.add(1).await.expect_err("out").to_string();
    let shown = "é".repeat(31);
    assert!(
        text.ends_with(&format!(" (key \"{shown}..{shown}\")")),
        "{text}"
    );

    let error = Client::builder().url("redis://h").name(&long).open();
    let error = error.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "the client name is longer than 64 bytes; give a shorter one"
    );
}
