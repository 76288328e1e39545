//! The client: where it finds its server, what it refuses to start with, and who owns whom.

use std::path::Path;
use std::time::Duration;

use hedgerow::{Client, ErrorKind};
use tokio::net::UnixStream;

use crate::support::process::Child;
use crate::support::server::Server;
use crate::support::wait::until;

#[tokio::test]
async fn ping_is_answered() {
    let server = Server::start().await;
    server.client().await.ping().await.expect("an answer");
}

#[tokio::test]
async fn a_client_starts_while_the_server_is_down() {
    let client = Client::builder()
        .url("redis://127.0.0.1:1")
        .deadline(Duration::from_millis(200))
        .open()
        .expect("no I/O yet");
    let error = client.ping().await.expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.is_retryable());
    assert!(!error.is_indeterminate());
}

#[tokio::test]
async fn the_environment_names_the_server() {
    let server = Server::start_single().await;
    let mut child = Child::start_where("read the environment", &[], |command| {
        command.env("REDIS_URL", server.url());
    });
    assert_eq!(child.says().await, "1");
    let views = server.client().await.counter("views").get().await;
    assert_eq!(views.expect("read"), 1);
    let mut child = Child::start_where("read the environment", &[], |command| {
        command.env_remove("REDIS_URL");
    });
    let said = child.says().await;
    assert!(
        said.starts_with("InvalidInput: REDIS_URL is not set"),
        "{said}"
    );
    let mut child = Child::start_where("read the environment", &[], |command| {
        command.env("REDIS_URL", "localhost");
    });
    let said = child.says().await;
    assert!(
        said.starts_with("InvalidInput: the URL is not understood"),
        "{said}"
    );
}

#[tokio::test]
async fn bad_urls_are_refused() {
    for url in [
        "",
        " ",
        "localhost",
        "localhost:6379",
        "http://localhost",
        "redis:/localhost",
        "redis://",
        "redis://localhost:port",
        "redis://localhost:99999",
        "redis://localhost/one",
        "redis://localhost:6379/99999999999999999999",
        "unix://",
        "unix:///s?db=one",
    ] {
        let error = match Client::open(url) {
            Ok(client) => panic!("{url:?} gave {client:?}"),
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url:?}");
        assert!(error.to_string().contains("redis://"), "{url:?}: {error}");
    }
    #[cfg(not(feature = "tls"))]
    for url in ["rediss://localhost", "valkeys://localhost", "Rediss://x"] {
        let error = Client::open(url).expect_err("no TLS");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}

#[tokio::test]
async fn bad_settings_are_refused() {
    let good = || Client::builder().url("redis://localhost");
    let zero = Duration::ZERO;
    for (what, builder) in [
        ("no server", Client::builder()),
        ("name", good().name("")),
        ("name", good().name("a b")),
        ("namespace", good().namespace("")),
        ("namespace", good().namespace("hr:o")),
        ("deadline", good().deadline(zero)),
        ("deadline", good().cache_deadline(zero)),
        ("connect timeout", good().connect_timeout(zero)),
    ] {
        let error = builder.open().expect_err(what);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}");
        assert!(error.to_string().contains(what), "{error}");
    }
    good().open().expect("good without them");
}

#[tokio::test]
async fn a_private_server_ends_when_its_owner_is_killed() {
    let mut owner = Child::start("own a server", &[]);
    let url = owner.says().await;
    let socket = Path::new(url.trim_start_matches("unix://")).to_owned();
    UnixStream::connect(&socket).await.expect("it runs");
    owner.kill().await;
    until("the server ends", async || {
        UnixStream::connect(&socket).await.is_err()
    })
    .await;
    let directory = socket.parent().expect("a directory of its own");
    until("nothing of it stays", async || !directory.exists()).await;
}

#[tokio::test]
async fn a_handshake_that_is_refused_gives_no_password_away() {
    let server = hedgerow::embedded::Server::start_with(&["--rename-command", "HELLO", ""])
        .await
        .expect("a server starts");
    let url = format!("{}?user=app&pass=canary-81f3", server.url());
    let client = Client::open(&url).expect("a good URL");
    let error = client.ping().await.expect_err("no HELLO, no RESP3");
    let told = format!("{error} {error:?} {client:?}");
    assert!(!told.contains("canary-81f3"), "{told}");
    assert!(told.contains("HELLO 3"), "{told}");
}
