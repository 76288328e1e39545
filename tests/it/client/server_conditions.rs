//! Every condition that one server can be in, brought about for real: the error names it, and the
//! data set is as it was. Conditions that pass by themselves are in `passing`.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, ErrorKind, Result};
use redis::Value;
use tokio::sync::Notify;

use super::secrets::told;
use crate::support::server::Server;
use crate::support::wait::{bounded, until};

/// Calls that write, by name.
const WRITES: [&str; 7] = [
    "add",
    "add within",
    "add once",
    "set",
    "acquire",
    "try_acquire",
    "cache set",
];

/// Calls on a counter that read, or give memory back.
const READS: [&str; 2] = ["get", "take"];

/// What stands in every URL, and must stand in no error.
const CANARY: &str = "canary-7c1e";

#[tokio::test]
async fn a_full_server_refuses_writes_and_still_reads_and_frees() {
    let server = Server::start().await;
    let client = hasty(&server).await;
    client.counter("views").set(5).await.expect("room");
    let _: Value = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    refused(&server, &client, &WRITES, ErrorKind::OutOfMemory, "OOM").await;
    assert_eq!(client.counter("views").get().await.expect("read"), 5);
    assert_eq!(client.counter("views").take().await.expect("freed"), 5);
    let _: Value = server.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    served(&client, &WRITES).await;
}

#[tokio::test]
async fn a_load_that_goes_on_while_the_server_is_full_is_not_taken_over() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("cities").takeover(Duration::from_millis(300));
    let (loading, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (began, may_end) = (loading.clone(), done.clone());
    let load = cache.memoize("42", MINUTE, move || async move {
        began.notify_one();
        may_end.notified().await;
        Ok::<_, std::io::Error>("Aix".to_owned())
    });
    let load = tokio::spawn(load.into_future());
    bounded("the loader begins", loading.notified()).await;
    let _: Value = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let takeover = async || -> u64 { server.run(&["HGET", "hr:l:{cities:42}", "takeover"]).await };
    let mut last = takeover().await;
    for _ in 0..2 {
        until("the takeover moves", async || takeover().await > last).await;
        last = takeover().await;
    }
    let _: Value = server.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    done.notify_one();
    let city = load.await.expect("no panic").expect("loaded");
    assert_eq!(*city, "Aix");
    assert!(cache.get::<String>("42").await.expect("read").is_some());
}

#[tokio::test]
async fn a_replica_refuses_writes_and_still_reads() {
    let server = Server::start_single().await;
    let client = hasty(&server).await;
    client.counter("views").set(5).await.expect("a primary");
    let _: Value = server.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    refused(&server, &client, &WRITES, ErrorKind::ReadOnly, "READONLY").await;
    refused(&server, &client, &["take"], ErrorKind::ReadOnly, "READONLY").await;
    assert_eq!(client.counter("views").get().await.expect("read"), 5);
    let _: Value = server.run(&["REPLICAOF", "NO", "ONE"]).await;
    served(&client, &WRITES).await;
}

#[tokio::test]
async fn a_replica_without_its_primary_refuses_reads_too() {
    let server = Server::start_with(&["--replica-serve-stale-data", "no"]).await;
    let client = hasty(&server).await;
    let _: Value = server.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    // A write is refused for itself, or for what is read before it: the format of its keys, which
    // is read again after each refusal. (A cache's set reads before, always.)
    let before = server.digest().await;
    for outcome in join_all(WRITES[..6].iter().map(|name| call(&client, name))).await {
        let error = outcome.expect_err("a replica takes no writes");
        let kinds = [ErrorKind::ReadOnly, ErrorKind::MasterDown];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        assert!(
            error.is_retryable() && !error.is_indeterminate(),
            "{error:?}"
        );
    }
    assert_eq!(server.digest().await, before);
    let reads = ["get", "cache set"];
    refused(
        &server,
        &client,
        &reads,
        ErrorKind::MasterDown,
        "MASTERDOWN",
    )
    .await;
}

#[tokio::test]
async fn a_server_that_cannot_save_refuses_writes() {
    let server = Server::start_with(&["--enable-protected-configs", "yes"]).await;
    let client = hasty(&server).await;
    server.cannot_save().await;
    refused(
        &server,
        &client,
        &WRITES,
        ErrorKind::Misconfigured,
        "MISCONF",
    )
    .await;
    server.saves_nothing().await;
    served(&client, &WRITES).await;
}

#[tokio::test]
async fn too_few_replicas_refuse_writes() {
    let server = Server::start().await;
    let client = hasty(&server).await;
    let _: Value = server
        .run(&["CONFIG", "SET", "min-replicas-to-write", "9"])
        .await;
    refused(
        &server,
        &client,
        &WRITES,
        ErrorKind::NoReplicas,
        "NOREPLICAS",
    )
    .await;
    let _: Value = server
        .run(&["CONFIG", "SET", "min-replicas-to-write", "0"])
        .await;
    served(&client, &WRITES).await;
}

#[tokio::test]
async fn missing_credentials_are_told() {
    let server = Server::start_single().await;
    let _: Value = server.run(&["CONFIG", "SET", "requirepass", CANARY]).await;
    let client = hasty(&server).await;
    for calls in [&WRITES[..], &READS] {
        refused(
            &server,
            &client,
            calls,
            ErrorKind::Unauthenticated,
            "NOAUTH",
        )
        .await;
    }
    served(&as_user(&server, "default", CANARY).await, &WRITES).await;
}

#[tokio::test]
async fn wrong_credentials_are_told_and_never_repeated() {
    let server = Server::start_single().await;
    let _: Value = server
        .run(&["CONFIG", "SET", "requirepass", "another"])
        .await;
    for user in ["default", "nobody"] {
        let client = as_user(&server, user, CANARY).await;
        for calls in [&WRITES[..], &READS] {
            let kind = ErrorKind::Unauthenticated;
            refused(&server, &client, calls, kind, "WRONGPASS").await;
        }
        assert!(!format!("{client:?} {client:#?}").contains(CANARY));
    }
}

#[tokio::test]
async fn no_builder_and_no_error_about_a_url_repeats_the_password() {
    for url in [
        format!("redis://user:{CANARY}@127.0.0.1:1"),
        format!("redis://user:{CANARY}@127.0.0.1:port"),
        format!("rediss://user:{CANARY}@127.0.0.1:1"),
        format!("http://user:{CANARY}@127.0.0.1:1"),
        format!("unix:///nowhere?user=user&pass={CANARY}"),
        CANARY.to_owned(),
    ] {
        let builder = Client::builder().url(&url).deadline(SOON);
        assert!(
            !format!("{builder:?} {builder:#?}").contains(CANARY),
            "{url}"
        );
        let error = match builder.open() {
            Err(error) => error,
            Ok(client) => {
                assert!(!format!("{client:?} {client:#?}").contains(CANARY), "{url}");
                client
                    .counter("views")
                    .add(1)
                    .await
                    .expect_err("nobody is there")
            }
        };
        assert!(!told(&error).contains(CANARY), "{url}: {error}");
    }
}

#[tokio::test]
async fn what_the_acl_forbids_changes_nothing_and_is_told() {
    let server = Server::start_single().await;
    server
        .client()
        .await
        .counter("views")
        .set(5)
        .await
        .expect("set");
    let scripted: &[&str] = &["add within", "add once", "set", "take"];
    for (rules, calls) in [
        (&["-incrby"][..], &["add"][..]),
        (&["-evalsha"], scripted),
        // Inside the scripts.
        (&["-get"], &["add within", "add once", "set", "take", "get"]),
        (&["-set"], &["add within", "add once", "set"]),
        (&["-pttl"], &["add within", "add once"]),
        (&["-del"], &["take"]),
        (
            &["resetkeys", "~hr:c:*"],
            &["add once", "acquire", "cache set"],
        ),
        (&["resetkeys", "~other:*"], &WRITES),
        (&["resetkeys", "~other:*"], &READS),
    ] {
        let user = [&["ACL", "SETUSER", "app", "reset", "on"][..]];
        let all = [">canary-7c1e", "~*", "&*", "+@all"];
        let words = [user[0], &all, rules].concat();
        let _: Value = server.run(&words).await;
        let client = as_user(&server, "app", CANARY).await;
        refused(&server, &client, calls, ErrorKind::Forbidden, "NOPERM").await;
    }
}

#[tokio::test]
async fn an_add_that_may_not_ask_for_the_time_left_is_still_an_add() {
    let server = Server::start_single().await;
    let user = ["on", ">canary-7c1e", "~*", "+@all", "-pttl"];
    let _: Value = server
        .run(&[&["ACL", "SETUSER", "app"], &user[..]].concat())
        .await;
    let client = as_user(&server, "app", CANARY).await;
    let added = client.counter("views").add(2).await.expect("added");
    assert_eq!((added.value, added.expires_in), (2, None));
}

#[tokio::test]
async fn a_server_without_room_for_a_connection_says_so() {
    let server = Server::start().await;
    let client = hasty(&server).await;
    let _: Value = server.run(&["CONFIG", "SET", "maxclients", "1"]).await;
    // Before there is TLS it says so to nobody.
    let kind = match server.speaks_tls() {
        true => ErrorKind::Unreachable,
        false => ErrorKind::MaxClients,
    };
    let server = &server;
    let calls = WRITES.iter().chain(&READS).map(|name| async move {
        // Each finds out by itself: a breaker would tell a cache what others have met.
        let client = hasty(server).await;
        refused(server, &client, &[name], kind, "maxclients").await;
    });
    join_all(calls).await;
    let _: Value = server.run(&["CONFIG", "SET", "maxclients", "100"]).await;
    // A client that was refused often waits a while before it knocks again.
    until("there is a connection", || async {
        client.ping().await.is_ok()
    })
    .await;
    served(&client, &WRITES).await;
}

#[tokio::test]
async fn nobody_listening_is_told_as_unreachable() {
    for url in ["redis://127.0.0.1:1", "unix:///nowhere/s"] {
        let calls = WRITES.iter().chain(&READS).map(|name| async move {
            // Each finds out by itself: a breaker would tell a cache what others have met.
            let client = Client::builder()
                .url(url)
                .deadline(SOON)
                .cache_deadline(SOON);
            let client = client.open().expect("no I/O yet");
            let error = call(&client, name).await.expect_err(name);
            let spared = error.kind() == ErrorKind::CircuitOpen && name.starts_with("cache");
            let unreachable = error.kind() == ErrorKind::Unreachable;
            assert!(spared || unreachable, "{name}: {error}");
            assert!(error.is_retryable() && !error.is_indeterminate(), "{name}");
        });
        join_all(calls).await;
    }
}

/// A command that it does not know the server quotes, up to 128 bytes, be they text or not.
#[tokio::test]
async fn a_refusal_that_quotes_what_is_no_text_is_told_as_one() {
    let server = Server::start_with(&["--rename-command", "EVALSHA", ""]).await;
    let client = hasty(&server).await;
    // Cut inside a letter.
    let cut = client.counter(&"é".repeat(100));
    let error = cut.add(1).within(0..=1).await.expect_err("no such command");
    assert_eq!(error.kind(), ErrorKind::Server, "{error}");
    assert!(error.to_string().contains("not UTF-8"), "{error}");
    assert!(!error.is_indeterminate() && !error.is_retryable());
    let bytes = vec![0xffu8; 64];
    let set = client.cache("cities").set("42", &bytes, MINUTE).await;
    assert_eq!(set.expect_err("no such command").kind(), ErrorKind::Server);

    // What shares the connection may have run: it is not told as refused.
    let views = client.counter("views");
    let (mut counted, mut unsure) = (0, 0);
    for _ in 0..20 {
        let adds = join_all((0..4).map(|_| views.add(1).into_future()));
        let (adds, refused) = futures::join!(adds, cut.add(1).within(0..=1).into_future());
        let refused = refused.expect_err("no such command");
        let told = refused.kind() == ErrorKind::Server || refused.is_indeterminate();
        assert!(told, "{refused}");
        for added in adds {
            match added {
                Ok(_) => counted += 1,
                Err(error) => {
                    assert!(error.is_indeterminate(), "{error}");
                    unsure += 1;
                }
            }
        }
    }
    let value = views.get().await.expect("read");
    assert!(
        (counted..=counted + unsure).contains(&value),
        "{counted} {unsure} {value}"
    );
    assert!(unsure > 0, "some shared it");
}

/// Makes the calls and expects each to be refused for `kind`, in words that hold `word`, with the
/// data set unchanged.
async fn refused(server: &Server, client: &Client, calls: &[&str], kind: ErrorKind, word: &str) {
    let before = server.digest().await;
    let outcomes = join_all(calls.iter().map(|name| call(client, name))).await;
    for (name, outcome) in calls.iter().zip(outcomes) {
        let error = match outcome {
            Err(error) => error,
            Ok(()) => panic!("{name} was served in spite of {word}"),
        };
        // A cache does not wait for a server that others have found out; it is told why.
        let spared = error.kind() == ErrorKind::CircuitOpen && name.starts_with("cache");
        assert!(spared || error.kind() == kind, "{name}: {error:?}");
        assert!(error.to_string().contains(word), "{name}: {error}");
        assert!(!error.is_indeterminate(), "{name}: {error}");
        let passing = matches!(
            kind,
            ErrorKind::ReadOnly
                | ErrorKind::MasterDown
                | ErrorKind::MaxClients
                | ErrorKind::Unreachable
        );
        assert_eq!(error.is_retryable(), passing, "{name}: {error}");
        assert!(error.key().is_some(), "{name}: {error} names no key");
        assert!(!told(&error).contains(CANARY), "{name}: {error}");
    }
    let after = server.digest().await;
    assert_eq!(after, before, "one of {calls:?} has changed something");
}

/// Makes the calls and expects an answer.
async fn served(client: &Client, calls: &[&str]) {
    for name in calls {
        call(client, name)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}

pub async fn call(client: &Client, name: &str) -> Result<()> {
    let counter = client.counter("views");
    match name {
        "add" => counter.add(1).await.map(drop),
        "add within" => counter.add(1).within(0..=100).await.map(drop),
        "add once" => counter.add(1).once("id", MINUTE).await.map(drop),
        "set" => counter.set(1).await,
        "get" => counter.get().await.map(drop),
        "take" => counter.take().await.map(drop),
        "acquire" => client
            .lock("invoice")
            .acquire()
            .await?
            .release()
            .await
            .map(drop),
        "try_acquire" => match client.lock("invoice").try_acquire().await? {
            Some(guard) => guard.release().await.map(drop),
            None => panic!("nobody holds it"),
        },
        "cache set" => client.cache("cities").set("42", &"Aix", MINUTE).await,
        _ => panic!("{name} is no call"),
    }
}

/// A client that soon gives up what could be tried again.
async fn hasty(server: &Server) -> Client {
    let builder = server.builder().deadline(SOON).cache_deadline(SOON);
    builder.open().expect("a good URL")
}

async fn as_user(server: &Server, user: &str, password: &str) -> Client {
    let url = format!("{}?user={user}&pass={password}", server.url());
    let builder = Client::builder()
        .url(&url)
        .deadline(SOON)
        .cache_deadline(SOON);
    builder.open().expect("a good URL")
}

const SOON: Duration = Duration::from_secs(2);
const MINUTE: Duration = Duration::from_secs(60);
