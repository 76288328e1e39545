//! TLS: who is believed, who is served, and that all else is as over any other connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hedgerow::{Client, ClientBuilder, Error, ErrorKind, client::Tls};

use crate::support::server::Server;
use crate::support::topology::{Certificates, Clients, Node, Port, Recipe, TlsServer};
use crate::support::wait::{bounded, queued, until};

const MINUTE: Duration = Duration::from_secs(60);

fn trusting(server: &TlsServer) -> Tls {
    Tls::new().roots_pem(server.certificates.authority.certificate.clone())
}

fn builder(server: &TlsServer, tls: Tls) -> ClientBuilder {
    Client::builder().url(&server.node.url()).tls(tls)
}

async fn client(server: &TlsServer, tls: Tls) -> Client {
    builder(server, tls).open().expect("good settings")
}

/// What a call ends with whose client cannot come to terms with the server.
async fn refusal(client: &Client) -> Error {
    let add = client.counter("views").add(1);
    let outcome = bounded("it is refused", async { add.await }).await;
    let error = outcome.expect_err("no way to the server");
    assert!(!error.is_indeterminate(), "{error}");
    error
}

#[tokio::test]
async fn all_primitives_work_over_tls() {
    let server = TlsServer::start(Clients::Anyone).await;
    let one = client(&server, trusting(&server)).await;
    let other = client(&server, trusting(&server)).await;
    assert_eq!(one.counter("views").add(2).await.expect("added").value, 2);
    assert_eq!(other.counter("views").get().await.expect("read"), 2);

    let guard = one.lock("a").acquire().await.expect("free");
    let lock = other.lock("a").wait(MINUTE);
    let waiter = tokio::spawn(async move { lock.acquire().await });
    queued(&one.lock("a"), 1).await;
    until("the wake channel is subscribed", async || {
        let words = ["PUBSUB", "SHARDCHANNELS", "hr:*:wake:*"];
        let channels: Vec<String> = server.node.run(&words).await;
        !channels.is_empty()
    })
    .await;
    let fence = guard.fence();
    guard.release().await.expect("released");
    let next = bounded("the waiter is told", waiter)
        .await
        .expect("no panic");
    let next = next.expect("handed over");
    assert!(next.fence() > fence);
    next.release().await.expect("released");

    let load = async || Ok::<_, io::Error>("Lyon".to_owned());
    let city: Arc<String> = one
        .cache("c")
        .memoize("k", MINUTE, load)
        .await
        .expect("a value");
    assert_eq!(*city, "Lyon");
    let found = other
        .cache("c")
        .get::<String>("k")
        .await
        .expect("an answer");
    assert_eq!(found.as_deref().map(String::as_str), Some("Lyon"));

    let clients: String = server.node.run(&["CLIENT", "LIST"]).await;
    let names = ["name=hedgerow ", "name=hedgerow-push "];
    assert!(names.iter().all(|name| clients.contains(name)), "{clients}");
}

#[tokio::test]
async fn ten_mebibytes_arrive_as_they_were() {
    let server = TlsServer::start(Clients::Anyone).await;
    let value: Vec<u8> = (0..10 * 1024 * 1024_u32)
        .map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let value = bytes::Bytes::from(value);
    let cache = |client: Client| client.cache("c").codec(hedgerow::Codec::Raw);
    let writer = cache(client(&server, trusting(&server)).await);
    writer.set("k", &value, MINUTE).await.expect("stored");
    let reader = cache(client(&server, trusting(&server)).await);
    let found = reader.get::<bytes::Bytes>("k").await.expect("an answer");
    assert!(found.is_some_and(|found| *found == value));
}

#[tokio::test]
async fn a_server_that_asks_is_shown_a_certificate() {
    let server = TlsServer::start(Clients::WithCertificate).await;
    let known = &server.certificates.client;
    let tls = trusting(&server).client_pem(known.certificate.clone(), known.key.clone());
    let client = client(&server, tls).await;
    assert_eq!(
        client.counter("views").add(1).await.expect("added").value,
        1
    );
}

#[tokio::test]
async fn without_the_right_certificate_nobody_is_served() {
    let server = TlsServer::start(Clients::WithCertificate).await;
    let stranger = &server.certificates.strangers_client;
    let strange = trusting(&server).client_pem(stranger.certificate.clone(), stranger.key.clone());
    for (who, tls) in [("nobody", trusting(&server)), ("a stranger", strange)] {
        let error = refusal(&client(&server, tls).await).await;
        assert_eq!(error.kind(), ErrorKind::Tls, "{who}: {error:?}");
        assert!(error.to_string().contains("client_pem"), "{who}: {error}");
        assert!(std::error::Error::source(&error).is_some(), "{who}");
    }
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_believed() {
    let server = TlsServer::start(Clients::Anyone).await;
    let strange = Tls::new().roots_pem(server.certificates.stranger.certificate.clone());
    // The system's roots vouch for nobody on this machine either.
    for builder in [
        builder(&server, strange),
        builder(&server, Tls::new()),
        Client::builder().url(&server.node.url()),
    ] {
        let Ok(client) = builder.open() else {
            continue; // A system without roots says so at once.
        };
        let error = refusal(&client).await;
        assert_eq!(error.kind(), ErrorKind::Tls, "{error:?}");
        assert!(error.to_string().contains("roots_pem"), "{error}");
        assert!(error.to_string().contains("nothing was sent"), "{error}");
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn a_certificate_must_carry_the_name_that_was_meant() {
    let server = TlsServer::start(Clients::Anyone).await;
    let wrong = trusting(&server).server_name("elsewhere.example");
    let error = refusal(&client(&server, wrong).await).await;
    assert_eq!(error.kind(), ErrorKind::Tls, "{error:?}");
    assert!(error.to_string().contains("another name"), "{error}");
    let right = trusting(&server).server_name("localhost");
    client(&server, right).await.ping().await.expect("its name");
}

#[tokio::test]
async fn tls_to_a_plaintext_port_says_so() {
    let node = Recipe::new().on(Port::free()).start().await;
    let client = Client::builder()
        .url(&node.url().replace("redis://", "rediss://"))
        .tls(Tls::new().roots_pem(Certificates::make().authority.certificate))
        .connect_timeout(Duration::from_millis(300))
        .deadline(Duration::from_secs(1))
        .open()
        .expect("good settings");
    // The server waits for the end of a line, which the first bytes of TLS may have, or not.
    let error = refusal(&client).await;
    assert!(error.to_string().contains("TLS"), "{error}");
    assert!(error.to_string().contains("port"), "{error}");
}

#[tokio::test]
async fn plaintext_to_a_tls_port_says_so() {
    let server = TlsServer::start(Clients::Anyone).await;
    let client = Client::builder()
        .url(&server.node.url().replace("rediss://", "redis://"))
        .deadline(Duration::from_secs(1))
        .open()
        .expect("good settings");
    let error = refusal(&client).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("rediss://"), "{error}");
}

#[tokio::test]
async fn what_is_wrong_is_said_before_a_client_exists() {
    let certificates = Certificates::make();
    let (authority, known) = (&certificates.authority, &certificates.client);
    let roots = || Tls::new().roots_pem(authority.certificate.clone());
    let at = |url: &str, tls: Tls| Client::builder().url(url).tls(tls);
    const GOOD: &str = "rediss://localhost";
    for (what, builder) in [
        ("roots", at(GOOD, Tls::new().roots_pem(""))),
        ("roots", at(GOOD, Tls::new().roots_pem("no PEM"))),
        (
            "roots",
            at(GOOD, Tls::new().roots_pem(authority.key.clone())),
        ),
        ("chain", at(GOOD, roots().client_pem("", known.key.clone()))),
        (
            "key",
            at(
                GOOD,
                roots().client_pem(known.certificate.clone(), "no key"),
            ),
        ),
        (
            "do not fit",
            at(
                GOOD,
                roots().client_pem(known.certificate.clone(), authority.key.clone()),
            ),
        ),
        ("server name", at(GOOD, roots().server_name("no name"))),
        ("rediss://", at("redis://localhost", roots())),
        ("rediss://", at("unix:///s", roots())),
        ("fragment", at("rediss://localhost#insecure", roots())),
        (
            "fragment",
            Client::builder().url("valkeys://localhost/0#insecure"),
        ),
        (
            "rediss://",
            Client::builder()
                .cluster(["rediss://localhost:1", "redis://localhost:2"])
                .tls(roots()),
        ),
        (
            "for all",
            Client::builder().cluster(["redis://localhost:1", "rediss://localhost:2"]),
        ),
        (
            "rediss://",
            Client::builder()
                .sentinels(["redis://localhost:1"], "s")
                .tls(roots()),
        ),
    ] {
        let error = builder.open().expect_err(what);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}");
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
    for url in [GOOD, "valkeys://u:p@localhost:1/2", "REDISS://localhost"] {
        at(url, roots()).open().expect("good");
    }
}

#[tokio::test]
async fn a_client_comes_back_over_tls_when_its_connections_or_its_server_are_killed() {
    let server = TlsServer::start(Clients::Anyone).await;
    let client = builder(&server, trusting(&server))
        .deadline(MINUTE)
        .open()
        .expect("good settings");
    client.ping().await.expect("an answer");
    let killed: usize = server.node.run(&["CLIENT", "KILL", "SKIPME", "yes"]).await;
    assert_eq!(killed, 1);
    client.ping().await.expect("another connection");
    server.node.kill().await;
    server.node.start_again().await;
    client.ping().await.expect("another server");
}

#[tokio::test]
async fn keys_and_passwords_are_not_shown() {
    let server = TlsServer::start(Clients::WithCertificate).await;
    let known = &server.certificates.client;
    let tls = trusting(&server).client_pem(known.certificate.clone(), known.key.clone());
    let credentials = hedgerow::client::Credentials::user("canary-user", "canary-81f3");
    let builder = builder(&server, tls.clone()).credentials(credentials.clone());
    let mut told = format!("{tls:?} {credentials:?} {builder:?}");
    let client = builder.open().expect("good settings");
    let error = refusal(&client).await;
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    told += &format!("{error} {error:?} {client:?}");
    for line in known.key.lines().chain(["canary-user", "canary-81f3"]) {
        assert!(line.starts_with("-----") || !told.contains(line), "{told}");
    }
    assert!(!told.contains("PRIVATE KEY"), "{told}");
}

#[tokio::test]
async fn a_cluster_keeps_to_tls_on_the_servers_it_names() {
    let certificates = Certificates::make();
    let node = tls_cluster(&certificates).await;
    let client = Client::builder()
        .cluster([node.url()])
        .tls(Tls::new().roots_pem(certificates.authority.certificate))
        .open()
        .expect("good settings");
    for number in 0..20 {
        let counter = client.counter(&format!("views:{number}"));
        assert_eq!(counter.add(1).await.expect("added").value, 1);
    }
}

/// A cluster of one server that speaks TLS only and has all slots.
async fn tls_cluster(certificates: &Certificates) -> Node {
    let recipe = crate::support::topology::with_tls(Recipe::new(), certificates, Clients::Anyone);
    let node = recipe
        .with(&["--cluster-enabled", "yes", "--tls-cluster", "yes"])
        .with(&["--cluster-port", &Port::free().number().to_string()])
        .on_tls(Port::free())
        .start()
        .await;
    let _: String = node.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    until("the cluster serves", async || {
        let info: String = node.run(&["CLUSTER", "INFO"]).await;
        info.contains("cluster_state:ok")
    })
    .await;
    node
}

#[tokio::test]
async fn the_topology_of_tests_by_tls_is_reached() {
    let server = Server::start_on("tls").await;
    server.client().await.ping().await.expect("an answer");
}

#[test]
fn a_key_that_lost_its_line_ends_is_not_quoted() {
    let known = Certificates::make().client;
    let key = known.key.replace('\n', "");
    let tls = Tls::new().client_pem(known.certificate, key);
    let client = Client::builder().url("rediss://127.0.0.1:1").tls(tls);
    let error = client.open().expect_err("no key");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(std::error::Error::source(&error).is_none(), "{error:?}");
}
