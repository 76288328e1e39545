//! The slot of a key: the crate's own calculation against the server's.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tokio::runtime::Builder;

use crate::support::server::{Server, connection};

#[test]
fn slots_agree_with_the_server_for_all_bytes() {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let server = runtime.block_on(clustered());
    let connection = runtime.block_on(connection(server.url()));
    let agrees = |key: Vec<u8>| {
        let mut command = redis::cmd("CLUSTER");
        command.arg("KEYSLOT").arg(&key);
        let asked: u16 = runtime
            .block_on(command.query_async(&mut connection.clone()))
            .expect("a slot");
        prop_assert_eq!(hedgerow::key::slot(&key), asked);
        Ok(())
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
