//! The load lease on a bad network: a copy of the question for it arrives late, after the lease it
//! was granted has ended, and with it the leader's right to store; or a renewal is not answered.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::BoxFuture;
use hedgerow::Cache;

use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, until, waiting};

#[tokio::test]
async fn a_late_copy_of_the_question_for_the_lease_does_not_let_a_superseded_load_be_stored() {
    let stage = Stage::set(|cache| cache).await;
    let gate = Gate::closed();
    let load = stage.superseded(&gate).await;
    gate.open();
    let value = bounded("the load ends", load).await.expect("no panic");
    assert_eq!(value.expect("its own load"), "old");
    assert_eq!(stage.stored().await, None, "it is older than the removal");
    let leases = stage.server.keys("hr:l:*").await;
    assert!(leases.is_empty(), "the lease is over");
}

#[tokio::test]
async fn a_lease_that_a_late_copy_took_is_renewed_by_nobody() {
    let stage = Stage::set(|cache| cache.takeover(Duration::from_millis(300))).await;
    let gate = Gate::closed();
    let load = stage.superseded(&gate).await;
    let quick = Gate::closed();
    quick.open();
    let call = stage.cache.memoize("ulm", AGES, loader(&quick, "new"));
    let value = bounded("the lease is taken over", call.into_future()).await;
    assert_eq!(*value.expect("loaded"), "new");
    gate.open();
    let value = bounded("the load ends", load).await.expect("no panic");
    assert_eq!(value.expect("its own load"), "old");
    assert_eq!(stage.stored().await.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_load_whose_renewal_is_not_answered_goes_on_and_is_stored() {
    // Asked again in time, over another connection; and given up, as the next one is due.
    for act in [Act::Reset, Act::Vanish] {
        let stage = Stage::set(|cache| cache.takeover(Duration::from_millis(900))).await;
        let (gate, quick) = (Gate::closed(), Gate::closed());
        quick.open();
        let load = stage.leader.memoize("ulm", AGES, loader(&gate, "slow"));
        let load = tokio::spawn(async move { load.await.map(|value| value.as_ref().clone()) });
        gate.begun(1).await;
        // From here on nothing but renewals names the lease.
        let lease = "hr:l:{cities:ulm}";
        let lost = stage.proxy.on_reply(Request::any().with(lease), act);
        lost.hit().await;
        // Without them others might take the load over by now.
        let renewals = Request::every().with(lease);
        let renewals = stage.proxy.on_reply(renewals, Act::Delay(Duration::ZERO));
        until("it is renewed as before", async || renewals.hits() >= 6).await;
        let call = stage.cache.memoize("ulm", AGES, loader(&quick, "quick"));
        let other = tokio::spawn(async move { call.await.map(|value| value.as_ref().clone()) });
        waiting(&stage.server, lease, 1).await;
        gate.open();
        for load in [load, other] {
            let value = bounded("the load ends", load).await.expect("no panic");
            assert_eq!(value.expect("loaded"), "slow", "{act:?}");
        }
        assert_eq!(stage.stored().await.as_deref(), Some("slow"));
        assert_eq!(quick.loads(), 0, "nobody has taken it over");
    }
}

/// A cache of two processes; one of them has a way to the server on which things arrive late.
struct Stage {
    server: Server,
    proxy: Proxy,
    leader: Cache,
    cache: Cache,
}

impl Stage {
    async fn set(terms: impl Fn(Cache) -> Cache) -> Self {
        let server = Server::start_single().await;
        let proxy = Proxy::before(&server);
        // The question is asked again when its connection is given up, not when its time is.
        let leader = proxy.builder().cache_deadline(AGES).open();
        let leader = leader.expect("a good URL").cache("cities").max_load(AGES);
        let cache = server.client().await.cache("cities").max_load(AGES);
        Self {
            leader: terms(leader),
            cache: terms(cache),
            server,
            proxy,
        }
    }

    /// A load is under way, its value was removed, and then a copy of the question for its lease
    /// has arrived, which was asked again when it was not answered.
    async fn superseded(&self, gate: &Gate) -> tokio::task::JoinHandle<hedgerow::Result<String>> {
        let copy = Request::any().with("hr:l:{cities:ulm}");
        let copy = self.proxy.on(copy, Act::Hold);
        let load = self.leader.memoize("ulm", AGES, loader(gate, "old"));
        let load = tokio::spawn(async move { load.await.map(|value| value.as_ref().clone()) });
        gate.begun(1).await;
        self.cache.remove("ulm").await.expect("removed");
        assert!(self.server.keys("hr:l:*").await.is_empty());
        copy.deliver();
        until("the copy takes the lease again", async || {
            !self.server.keys("hr:l:*").await.is_empty()
        })
        .await;
        load
    }

    async fn stored(&self) -> Option<String> {
        let value = self.cache.get::<String>("ulm").await.expect("an answer");
        value.map(|value| value.as_ref().clone())
    }
}

type Loaded = BoxFuture<'static, Result<String, Infallible>>;

fn loader(gate: &Gate, value: &str) -> impl FnOnce() -> Loaded + Send + 'static {
    let (gate, value) = (gate.clone(), value.to_owned());
    move || Box::pin(gate.load(value))
}

/// Longer than any test takes.
const AGES: Duration = Duration::from_secs(3600);
