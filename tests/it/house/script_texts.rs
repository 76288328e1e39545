//! What a server is sent of a script that it does not know.

use std::time::Duration;

use crate::support::monitor::Monitor;
use crate::support::server::Server;

#[tokio::test]
async fn scripts_are_sent_without_comments_and_indentation() {
    let server = Server::start_single().await;
    let monitor = Monitor::start(&server).await;
    let client = server.client().await;
    let guard = client.lock("a").acquire().await.expect("free");
    guard.release().await.expect("held until now");
    let added = client.counter("views").add(1).within(0..=9).await;
    assert_eq!(added.expect("added").value, 1);
    let cache = client.cache("c");
    let minute = Duration::from_secs(60);
    let set = cache.set("k", &1u8, minute).tags(["t"]);
    set.await.expect("set");
    let found = cache.get::<u8>("k").await.expect("an answer");
    assert_eq!(found.as_deref(), Some(&1));
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    cache.remove("k").await.expect("removed");

    let sent = monitor.commands(&server, "\"EVAL\" \"").await;
    assert!(sent.len() >= 6, "{} scripts are sent", sent.len());
    for command in &sent {
        let (_, text) = command.split_once("\"EVAL\" \"").expect("it was found");
        // The arguments after it may be any bytes.
        let text = text.split("\\n\" \"").next().unwrap_or_default();
        assert!(text.starts_with("#!lua"), "{command}");
        for line in text.split("\\n") {
            let stays = !line.starts_with("--") && !line.starts_with([' ', '\t']);
            assert!(stays && !line.is_empty(), "{line:?} of {command}");
        }
    }
}
