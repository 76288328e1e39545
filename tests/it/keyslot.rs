//! The slot of a key: the crate's own calculation against the server's.

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use tokio::runtime::Builder;

use crate::server::{Server, connection};

#[test]
fn slots_agree_with_the_server_for_all_bytes() {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (_server, connected) = runtime.block_on(async {
        let server = clustered().await;
        let connected = connection(server.url()).await;
        (server, connected)
    });
    let agrees = |key: Vec<u8>| {
        let mut command = redis::cmd("CLUSTER");
        command.arg("KEYSLOT").arg(&key);
        let mut connected = connected.clone();
        let asked = command.query_async::<u16>(&mut connected);
        let asked = runtime.block_on(asked).expect("a slot");
        let own = hedgerow::slot(&key);
        match own == asked {
            true => Ok(()),
            false => Err(TestCaseError::fail(format!("{own}, the server: {asked}"))),
        }
    };
    for key in [
        &b""[..],
        b"{}",
        b"{}a",
        b"{",
        b"}{",
        b"a{b",
        b"a}b{c}d",
        b"{{a}}",
        b"{a}{b}",
        b"{}{a}",
        b"hr:{b3f}:lock:invoice:7",
    ] {
        agrees(key.to_vec()).expect("a key by hand");
    }
    let byte = prop_oneof![3 => any::<u8>(), 1 => Just(b'{'), 1 => Just(b'}')];
    TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })
    .run(&prop::collection::vec(byte, 0..200), agrees)
    .expect("the same slot");
}

/// A server that knows of slots. Its bus wants a port, though nobody will join.
async fn clustered() -> Server {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("bound").port().to_string();
    drop(free);
    let mut arguments = vec!["--cluster-enabled", "yes", "--bind", "127.0.0.1"];
    arguments.extend(["--cluster-port", &port]);
    Server::start_with(&arguments).await
}
