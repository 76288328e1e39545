//! The format of a namespace: clients that write its keys in another way refuse to lock and to
//! count.

use std::time::Duration;

use hedgerow::{Client, Error, ErrorKind};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;

const LOCKS: &str = "hr:f:{lock}";
const COUNTERS: &str = "hr:f:{counter}";

/// Whatever writes.
async fn writes(client: &Client) -> Vec<Option<Error>> {
    let (lock, counter) = (client.lock("a"), client.counter("views"));
    vec![
        lock.acquire().await.err(),
        lock.try_acquire().await.err(),
        counter.add(1).await.err(),
        counter.add(1).within(0..=9).await.err(),
        counter.set(1).await.err(),
        counter.take().await.err(),
    ]
}

fn is_of_another_format(error: &Error, theirs: &str, ours: &str) {
    assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
    assert!(
        !error.is_indeterminate() && !error.is_retryable(),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains(theirs) && text.contains(ours), "{text}");
}

#[tokio::test]
async fn where_another_format_is_written_nothing_is_locked_or_counted() {
    let server = Server::start_single().await;
    let client = server.client().await;
    server.run::<()>(&["MSET", LOCKS, "3", COUNTERS, "7"]).await;
    let before = server.digest().await;
    let errors = writes(&client).await;
    for (index, error) in errors.into_iter().enumerate() {
        let error = error.expect("refused");
        match index {
            0 | 1 => is_of_another_format(&error, "\"3\"", "\"2\""),
            _ => is_of_another_format(&error, "\"7\"", "\"1\""),
        }
    }
    let error = client.counter("views").get().await.expect_err("refused");
    is_of_another_format(&error, "\"7\"", "\"1\"");
    assert_eq!(server.digest().await, before, "nothing was written");
}

#[tokio::test]
async fn whoever_writes_first_says_in_which_format() {
    let server = Server::start_single().await;
    let client = server.client().await;
    assert_eq!(client.counter("views").get().await.expect("read"), 0);
    assert!(server.keys("*").await.is_empty(), "a read writes nothing");
    client.counter("views").add(1).await.expect("added");
    assert_eq!(server.run::<String>(&["GET", COUNTERS]).await, "1");
    assert!(server.keys(LOCKS).await.is_empty(), "nobody has locked");
    let guard = client.lock("a").acquire().await.expect("free");
    guard.release().await.expect("held until now");
    assert_eq!(server.run::<String>(&["GET", LOCKS]).await, "2");
    assert_eq!(server.run::<i64>(&["PTTL", LOCKS]).await, -1);
}

#[tokio::test]
async fn the_format_is_asked_for_once() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let asked = proxy.on(Request::every().named("GET"), Act::Delay(Duration::ZERO));
    let client = proxy.builder().deadline(Duration::from_secs(20)).open();
    let client = client.expect("a good URL");
    for _ in 0..10 {
        client.counter("views").add(1).await.expect("added");
        let guard = client.lock("a").acquire().await.expect("free");
        guard.release().await.expect("held until now");
    }
    assert_eq!(asked.hits(), 2, "once for each kind");
}

#[tokio::test]
async fn the_format_is_asked_for_again_where_a_connection_was_made_anew() {
    let server = Server::start_single().await;
    let client = server.client().await;
    assert!(writes(&client).await.iter().all(Option::is_none));
    // All is lost, and somebody of another format is the first to write.
    server.run::<()>(&["FLUSHALL"]).await;
    server.run::<()>(&["MSET", LOCKS, "3", COUNTERS, "7"]).await;
    server
        .run::<()>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await;
    client.ping().await.expect("connected anew");
    let errors = writes(&client).await;
    assert!(errors.iter().all(Option::is_some), "{errors:?}");
}

#[tokio::test]
async fn where_the_format_cannot_be_said_it_is_heard() {
    let server = Server::start_single().await;
    let rule = ["ACL", "SETUSER", "default", "-set"];
    server.run::<()>(&rule).await;
    let client = server.builder().deadline(Duration::from_secs(20));
    let client = client.open().expect("a good URL");
    client.counter("views").add(1).await.expect("added");
    assert!(server.keys(COUNTERS).await.is_empty());
    server
        .run::<()>(&["ACL", "SETUSER", "default", "+set"])
        .await;
    server.run::<()>(&["SET", COUNTERS, "7"]).await;
    server
        .run::<()>(&["ACL", "SETUSER", "default", "-set"])
        .await;
    let other = server.client().await;
    let error = other.counter("views").add(1).await.expect_err("refused");
    is_of_another_format(&error, "\"7\"", "\"1\"");
}

#[tokio::test]
async fn a_read_after_a_write_that_could_not_say_the_format_hears_it() {
    let server = Server::start_single().await;
    let may = async |right: &str| {
        let rule = ["ACL", "SETUSER", "default", right];
        server.run::<()>(&rule).await;
    };
    may("-set").await;
    let client = server.client().await;
    client.counter("views").add(1).await.expect("added");
    assert_eq!(client.counter("views").get().await.expect("read"), 1);
    may("+set").await;
    server.run::<()>(&["SET", COUNTERS, "7"]).await;
    may("-set").await;
    let error = client.counter("views").get().await.expect_err("refused");
    is_of_another_format(&error, "\"7\"", "\"1\"");
}

#[tokio::test]
async fn a_read_that_found_no_format_does_not_trust_that_there_will_be_none() {
    let server = Server::start_single().await;
    let client = server.client().await;
    assert_eq!(client.counter("views").get().await.expect("read"), 0);
    server.run::<()>(&["SET", COUNTERS, "7"]).await;
    let error = client.counter("views").get().await.expect_err("refused");
    is_of_another_format(&error, "\"7\"", "\"1\"");
}

#[tokio::test]
async fn where_a_full_server_refused_the_format_it_is_set_when_there_is_room() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let limit = [
        "CONFIG",
        "SET",
        "maxmemory-policy",
        "noeviction",
        "maxmemory",
    ];
    server.run::<()>(&[&limit[..], &["1"]].concat()).await;
    let error = client.counter("views").add(1).await.expect_err("full");
    assert!(!error.is_indeterminate(), "{error}");
    server.run::<()>(&[&limit[..], &["0"]].concat()).await;
    client.counter("views").add(1).await.expect("there is room");
    assert_eq!(server.run::<String>(&["GET", COUNTERS]).await, "1");
}
