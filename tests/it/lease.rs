//! The load lease, when a copy of the question for it arrives late: after the lease it was granted
//! has ended, and with it the leader's right to store.

use std::time::Duration;

use hedgerow::Cache;

use crate::memoize::Gate;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::wait::bounded;

#[tokio::test]
async fn a_late_copy_of_the_question_for_the_lease_does_not_let_a_superseded_load_be_stored() {
    let server = Server::start().await;
    let proxy = Proxy::before(&server);
    let leader = proxy.builder().connect().await.expect("a good URL");
    let leader = leader.cache("cities");
    let cache = server.client().await.cache("cities");
    let gate = Gate::closed();
    let load = leader.memoize("ulm", AGES, loader(&gate, "old"));
    let load = tokio::spawn(load.into_future());
    gate.begun(1).await;

    cache.remove("ulm").await.expect("removed");
    assert!(copied(&proxy).await.contains("LEAD"), "it takes the lease");
    gate.open();
    let value = bounded("the load ends", load).await.expect("no panic");
    assert_eq!(*value.expect("its own load"), "old");
    let stored = cache.get::<String>("ulm").await.expect("an answer");
    assert_eq!(stored, None, "it is older than the removal");
    assert!(server.keys("hr:l:*").await.is_empty(), "the lease is over");
}

#[tokio::test]
async fn a_lease_that_a_late_copy_took_is_renewed_by_nobody() {
    let server = Server::start().await;
    let proxy = Proxy::before(&server);
    let leader = proxy.builder().connect().await.expect("a good URL");
    let slow = |cache: Cache| cache.takeover(Duration::from_millis(300)).max_load(AGES);
    let leader = slow(leader.cache("cities"));
    let cache = slow(server.client().await.cache("cities"));
    let gate = Gate::closed();
    let load = leader.memoize("ulm", AGES, loader(&gate, "old"));
    let load = tokio::spawn(load.into_future());
    gate.begun(1).await;

    cache.remove("ulm").await.expect("removed");
    assert!(copied(&proxy).await.contains("LEAD"), "it takes the lease");
    let quick = Gate::closed();
    quick.open();
    let call = cache.memoize("ulm", AGES, loader(&quick, "new"));
    let value = bounded("the lease is taken over", call.into_future()).await;
    assert_eq!(*value.expect("loaded"), "new");
    gate.open();
    let value = bounded("the load ends", load).await.expect("no panic");
    assert_eq!(*value.expect("its own load"), "old");
    let stored = cache.get::<String>("ulm").await.expect("an answer");
    assert_eq!(stored.as_deref().map(String::as_str), Some("new"));
}

/// A copy of the question for the lease arrives.
async fn copied(proxy: &Proxy) -> String {
    proxy.ask_again(&["EVAL\r\n", "hr:l:{cities:ulm}"]).await
}

fn loader(
    gate: &Gate,
    value: &str,
) -> impl FnOnce() -> futures::future::BoxFuture<'static, Result<String, std::convert::Infallible>>
+ Send
+ 'static {
    let (gate, value) = (gate.clone(), value.to_owned());
    move || Box::pin(gate.load(value))
}

/// Longer than any test takes.
const AGES: Duration = Duration::from_secs(3600);
