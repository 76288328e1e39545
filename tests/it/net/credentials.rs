//! Credentials that are given, and that rotate.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hedgerow::{Client, ClientBuilder, ErrorKind, client::Credentials};

use crate::support::server::Server;
use crate::support::wait::until;

const MINUTE: Duration = Duration::from_secs(60);

/// A server with a user `app` of this password.
async fn start(password: &str) -> Server {
    let server = Server::start_single().await;
    set_password(&server, password).await;
    server
}

/// From now on this is the only password of `app`.
async fn set_password(server: &Server, password: &str) {
    let password = format!(">{password}");
    let words = [
        "ACL",
        "SETUSER",
        "app",
        "on",
        "resetpass",
        &password,
        "~*",
        "&*",
        "+@all",
    ];
    let _: String = server.run(&words).await;
}

/// A client that asks a provider which answers with what `password` holds, and counts.
fn asking(
    server: &Server,
    password: &Arc<Mutex<String>>,
    asked: &Arc<AtomicUsize>,
) -> ClientBuilder {
    let (password, asked) = (password.clone(), asked.clone());
    let provider = move || {
        asked.fetch_add(1, Ordering::SeqCst);
        let password = password.lock().expect("no panic").clone();
        async move { Ok(Credentials::user("app", password)) }
    };
    Client::builder()
        .url(server.url())
        .deadline(MINUTE)
        .cache_deadline(MINUTE)
        .credentials_from(provider)
}

#[tokio::test]
async fn given_credentials_count_instead_of_those_in_the_url() {
    let server = start("right").await;
    let url = format!("{}?user=app&pass=wrong", server.url());
    let builder = Client::builder().url(&url);
    let builder = builder.credentials(Credentials::user("app", "right"));
    let client = builder.open().expect("a good URL");
    client.ping().await.expect("the given ones are right");
    let list: String = server.run(&["CLIENT", "LIST"]).await;
    assert!(list.contains("user=app"), "{list}");
}

#[tokio::test]
async fn a_password_alone_is_that_of_the_default_user() {
    let server = Server::start_single().await;
    let _: String = server.run(&["CONFIG", "SET", "requirepass", "right"]).await;
    for (password, expected) in [("right", None), ("wrong", Some(ErrorKind::Unauthenticated))] {
        let builder = Client::builder().url(server.url());
        let builder = builder.credentials(Credentials::password(password));
        let client = builder.open().expect("a good URL");
        let outcome = client.ping().await;
        assert_eq!(outcome.err().map(|error| error.kind()), expected);
    }
}

#[tokio::test]
async fn a_provider_is_asked_for_each_connection_and_not_between() {
    let server = start("one").await;
    let (password, asked) = (Arc::new(Mutex::new("one".to_owned())), Arc::default());
    let client = asking(&server, &password, &asked).open();
    let client = client.expect("good settings");
    assert_eq!(asked.load(Ordering::SeqCst), 0, "no connection yet");
    for _ in 0..10 {
        client.ping().await.expect("an answer");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    server.kill_connections("hedgerow").await;
    client.ping().await.expect("an answer");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotated_passwords_lose_no_call() {
    let server = start("0").await;
    let (password, asked) = (Arc::new(Mutex::new("0".to_owned())), Arc::default());
    let client = asking(&server, &password, &asked).open();
    let client = client.expect("good settings");
    let over = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicUsize::new(0));
    let mut users = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (client, over, calls) = (client.clone(), over.clone(), calls.clone());
        users.spawn(async move {
            // Reads, which are sent again when their connection is killed.
            let counter = client.counter(&format!("views:{number}"));
            while !over.load(Ordering::SeqCst) {
                assert_eq!(counter.get().await.expect("no call is lost"), 0);
                calls.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    until("calls are made", async || calls.load(Ordering::SeqCst) > 0).await;
    for rotation in 1..=5 {
        let next = rotation.to_string();
        // The server knows first: who connects meanwhile is refused until the provider knows.
        set_password(&server, &next).await;
        let before = asked.load(Ordering::SeqCst);
        assert_eq!(server.kill_connections("hedgerow").await, 1);
        until("the old password was tried again", async || {
            asked.load(Ordering::SeqCst) >= before + 2
        })
        .await;
        *password.lock().expect("no panic") = next;
        let done = calls.load(Ordering::SeqCst);
        until("calls go on", async || {
            calls.load(Ordering::SeqCst) > done + 8
        })
        .await;
    }
    over.store(true, Ordering::SeqCst);
    users.join_all().await;
}

#[tokio::test]
async fn a_wrong_password_of_a_provider_is_told_at_the_deadline() {
    let server = start("right").await;
    let (password, asked) = (Arc::new(Mutex::new("wrong".to_owned())), Arc::default());
    let builder = asking(&server, &password, &asked).deadline(Duration::from_millis(300));
    let client = builder.open().expect("good settings");
    let error = client.ping().await.expect_err("wrong for good");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(error.is_retryable(), "the next password may be right");
    assert!(asked.load(Ordering::SeqCst) > 1, "it was asked again");
}

#[tokio::test]
async fn an_error_of_the_provider_is_the_source() {
    let server = Server::start_single().await;
    let builder = Client::builder().url(server.url());
    let builder = builder.credentials_from(|| async { Err("the vault is sealed".into()) });
    let client = builder.open().expect("good settings");
    let error = client.ping().await.expect_err("nobody to be");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(!error.is_retryable());
    let source = std::error::Error::source(&error).expect("the provider's");
    assert_eq!(source.to_string(), "the vault is sealed");
}

#[tokio::test]
async fn a_provider_that_never_answers_does_not_hold_a_call_past_its_deadline() {
    let server = Server::start_single().await;
    let client = Client::builder()
        .url(server.url())
        .deadline(Duration::from_millis(200))
        .credentials_from(std::future::pending)
        .open()
        .expect("good settings");
    let error = client.ping().await.expect_err("nobody to be");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    assert!(error.to_string().contains("provider"), "{error}");
}
