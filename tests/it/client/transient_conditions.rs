//! Conditions that pass: a call meets one, is sent again, and is served when the condition ends,
//! exactly once. A call whose deadline comes first names the condition, and has changed nothing.

use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, ErrorKind};
use redis::Value;
use redis::aio::MultiplexedConnection;

use super::server_conditions::call;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, connection, signal};
use crate::support::wait::until;

/// Calls that meet the condition, each for the whole of its deadline.
const CALLS: [&str; 6] = ["add", "add once", "set", "try_acquire", "cache set", "get"];

/// A call that waits for the end of a condition.
type Patient = tokio::task::JoinHandle<hedgerow::Result<hedgerow::counter::Added>>;

#[tokio::test]
async fn a_loading_server_is_named_and_waited_for() {
    // The server looks up from its loading after each kilobyte, which is each key of these.
    let server = Server::start_with(&[
        "--loading-process-events-interval-bytes",
        "1024",
        "--rdbcompression",
        "no",
    ])
    .await;
    let (client, patient) = clients(&server, LATER).await;
    let _: Value = server
        .run(&["DEBUG", "POPULATE", "10000", "filler", "1024"])
        .await;
    let before = server.digest().await;
    // It goes on until the delay is taken back.
    let _: Value = server
        .run(&["CONFIG", "SET", "key-load-delay", "5000"])
        .await;
    let reload = behind(&server, &["DEBUG", "RELOAD"]).await;
    until("the server loads", || async {
        info(&server, "persistence", "loading:1").await
    })
    .await;
    let patient = add_patiently(&patient);
    refused(&client, ErrorKind::Loading, "LOADING").await;
    let met = errors(&server, "LOADING").await;
    assert!(met > CALLS.len(), "calls are sent again: {met} refusals");
    let _: Value = server.run(&["CONFIG", "SET", "key-load-delay", "0"]).await;
    reload.await.expect("no panic");
    assert_eq!(served(patient).await, 1, "the add of the patient one, once");
    let _: Value = server.run(&["DEL", "hr:c:{patient}"]).await;
    assert_eq!(
        server.digest().await,
        before,
        "the refused calls changed nothing"
    );
}

#[tokio::test]
async fn a_server_that_is_busy_with_a_script_is_named_and_waited_for() {
    let server = Server::start_with(&["--busy-reply-threshold", "10"]).await;
    let (client, patient) = clients(&server, LATER).await;
    let before = server.digest().await;
    let endless = behind(&server, &["EVAL", "while true do end", "0"]).await;
    until("the script holds the server up", || async {
        let pong: redis::RedisResult<Value> = server.try_run(&["PING"]).await;
        pong.is_err_and(|error| error.code() == Some("BUSY"))
    })
    .await;
    let patient = add_patiently(&patient);
    refused(&client, ErrorKind::Busy, "BUSY").await;
    assert!(!patient.is_finished(), "it waits");
    let _: Value = server.run(&["SCRIPT", "KILL"]).await;
    endless.await.expect("no panic");
    assert_eq!(served(patient).await, 1, "the add of the patient one, once");
    assert!(
        errors(&server, "BUSY").await > CALLS.len(),
        "calls are sent again"
    );
    let _: Value = server.run(&["DEL", "hr:c:{patient}"]).await;
    assert_eq!(
        server.digest().await,
        before,
        "the refused calls changed nothing"
    );
}

#[tokio::test]
async fn a_replica_that_is_promoted_serves_the_call_that_waited() {
    let server = Server::start_single().await;
    let (_, patient) = clients(&server, SOON).await;
    let _: Value = server.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let patient = add_patiently(&patient);
    until("it was refused twice", || async {
        errors(&server, "READONLY").await >= 2
    })
    .await;
    let _: Value = server.run(&["REPLICAOF", "NO", "ONE"]).await;
    assert_eq!(served(patient).await, 1);
}

#[tokio::test]
async fn a_replica_that_was_left_and_is_not_reached_again_is_told_as_what_it_was() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let hasty = proxy.builder().deadline(Duration::from_millis(400));
    let hasty = hasty.open().expect("a good URL");
    hasty.ping().await.expect("an answer");
    let _: Value = server.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let hello = proxy.on(Request::every().named("HELLO"), Act::Hold);
    let error = hasty.counter("views").add(1).await.expect_err("a replica");
    assert!(hello.hits() > 0, "the replica is left");
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error:?}");
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_was_refused_is_made_when_there_is_room() {
    let server = Server::start_single().await;
    let patient = server
        .builder()
        .deadline(MINUTE)
        .open()
        .expect("a good URL");
    let _: Value = server.run(&["CONFIG", "SET", "maxclients", "1"]).await;
    let patient = add_patiently(&patient);
    until("it was turned away", || async {
        !info(&server, "stats", "rejected_connections:0").await
    })
    .await;
    let _: Value = server.run(&["CONFIG", "SET", "maxclients", "100"]).await;
    assert_eq!(served(patient).await, 1);
}

#[tokio::test]
async fn a_hung_server_is_told_before_it_goes_on_and_what_was_sent_as_indeterminate() {
    let server = Server::start_single().await;
    let (client, _) = clients(&server, SOON).await;
    let pid = server.pid().await;
    signal(pid, "STOP");
    let names = [
        "add",
        "add within",
        "add once",
        "set",
        "take",
        "get",
        "acquire",
        "cache set",
    ];
    let calls = names.map(|name| {
        let client = client.clone();
        (name, tokio::spawn(async move { call(&client, name).await }))
    });
    let mut errors = Vec::new();
    for (name, call) in calls {
        errors.push((name, call.await.expect("no panic").err()));
    }
    // Many at once, on a client that has no connection yet.
    let unconnected = hasty(&server, SOON).await.counter("cold");
    let adds: Vec<_> = (0..20)
        .map(|_| tokio::spawn(unconnected.add(1).into_future()))
        .collect();
    let mut cold = Vec::new();
    for add in adds {
        cold.push(add.await.expect("no panic"));
    }
    signal(pid, "CONT");
    for (name, error) in errors {
        let error = error.unwrap_or_else(|| panic!("{name} was answered by a stopped server"));
        assert_eq!(error.kind(), ErrorKind::Timeout, "{name}: {error}");
        // What only reads, or has come no further than that, has changed nothing.
        let reads = matches!(name, "get" | "cache set");
        assert_eq!(error.is_indeterminate(), !reads, "{name}: {error}");
        assert_eq!(error.is_retryable(), reads, "{name}: {error}");
    }
    for answer in cold {
        let error = answer.expect_err("no connection");
        assert!(
            error.is_retryable() && !error.is_indeterminate(),
            "{error:?}"
        );
    }
    let sent = client.counter("cold").get().await;
    assert_eq!(sent.expect("read"), 0, "nothing was sent");
    call(&client, "add").await.expect("it goes on");
}

#[tokio::test]
async fn no_add_is_counted_twice_while_the_server_hangs_now_and_then() {
    let server = Server::start_single().await;
    let (client, _) = clients(&server, SOON).await;
    let pid = server.pid().await;
    let adders: Vec<_> = (0..20)
        .map(|_| {
            let counter = client.counter("patient");
            tokio::spawn(async move {
                let (mut counted, mut unsure) = (0, 0);
                for _ in 0..20 {
                    match counter.add(1).await {
                        Ok(_) => counted += 1,
                        Err(error) => {
                            assert!(error.is_indeterminate() || error.is_retryable(), "{error}");
                            unsure += i64::from(error.is_indeterminate());
                        }
                    }
                }
                (counted, unsure)
            })
        })
        .collect();
    let counter = server.client().await.counter("patient");
    for _ in 0..2 {
        signal(pid, "STOP");
        let _ = call(&client, "get").await;
        signal(pid, "CONT");
    }
    let (mut counted, mut unsure) = (0, 0);
    for adder in adders {
        let one = adder.await.expect("no panic");
        (counted, unsure) = (counted + one.0, unsure + one.1);
    }
    let value = counter.get().await.expect("read");
    assert!(unsure > 0, "the server hung under load");
    assert!(
        (counted..=counted + unsure).contains(&value),
        "{counted} {unsure} {value}"
    );
}

/// One client that soon gives up, one that does not, both connected.
async fn clients(server: &Server, deadline: Duration) -> (Client, Client) {
    let patient = server
        .builder()
        .deadline(MINUTE)
        .open()
        .expect("a good URL");
    let hasty = hasty(server, deadline).await;
    for client in [&hasty, &patient] {
        // The first call of a kind reads in which format its keys are written.
        let counter = client.counter("first");
        counter.add(1).await.expect("an answer");
        counter.take().await.expect("an answer");
        let guard = client.lock("first").acquire().await.expect("free");
        guard.release().await.expect("held until now");
    }
    (hasty, patient)
}

async fn hasty(server: &Server, deadline: Duration) -> Client {
    let builder = server.builder().deadline(deadline);
    let builder = builder.cache_deadline(deadline);
    builder.open().expect("a good URL")
}

fn add_patiently(client: &Client) -> Patient {
    let add = client.counter("patient").add(1).within(0..=9);
    tokio::spawn(add.into_future())
}

/// The value after the add.
async fn served(patient: Patient) -> i64 {
    patient.await.expect("no panic").expect("served").value
}

/// Expects every call to name the condition, and nothing to be unsure.
async fn refused(client: &Client, kind: ErrorKind, word: &str) {
    let calls = join_all(CALLS.map(|name| call(client, name))).await;
    for (name, outcome) in CALLS.into_iter().zip(calls) {
        let error = match outcome {
            Err(error) => error,
            Ok(()) => panic!("{name} was served in spite of {word}"),
        };
        // A cache does not wait for a server that others have found out; it is told why.
        let spared = error.kind() == ErrorKind::CircuitOpen && name.starts_with("cache");
        assert!(spared || error.kind() == kind, "{name}: {error:?}");
        assert!(error.to_string().contains(word), "{name}: {error}");
        assert!(
            error.is_retryable() && !error.is_indeterminate(),
            "{name}: {error}"
        );
    }
}

/// Runs a command that takes long on a connection of its own; returns when it is sent.
async fn behind(server: &Server, words: &[&str]) -> tokio::task::JoinHandle<()> {
    let mut connection: MultiplexedConnection = connection(server.url()).await;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    tokio::spawn(async move {
        let _: redis::RedisResult<Value> = command.query_async(&mut connection).await;
    })
}

async fn info(server: &Server, section: &str, line: &str) -> bool {
    let info: String = server.run(&["INFO", section]).await;
    info.lines().any(|it| it == line)
}

/// How often the server has answered with an error of `code`.
async fn errors(server: &Server, code: &str) -> usize {
    let info: String = server.run(&["INFO", "errorstats"]).await;
    let prefix = format!("errorstat_{code}:count=");
    info.lines()
        .find_map(|line| line.strip_prefix(&prefix))
        .map_or(0, |count| count.parse().expect("a number"))
}

const MINUTE: Duration = Duration::from_secs(60);

/// How long a hasty client tries.
const SOON: Duration = Duration::from_secs(1);

/// The loading and the busy server answer slowly, and what they have against the last attempt has
/// to come within the last tenth.
const LATER: Duration = Duration::from_secs(5);
