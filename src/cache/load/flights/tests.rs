//! Tests of [`flights`](super).

use super::*;
use crate::client::Client;
use crate::time::OnOutage;

#[tokio::test(start_paused = true)]
async fn a_call_whose_own_time_the_flight_gives_the_server_does_not_stop_before_it() {
    let client = Client::open("redis://127.0.0.1:6379").expect("a good URL");
    let cache = client.cache("c");
    let key = cache.value(&client.name("k")).expect("a good key");
    // Not a whole number of ms: what is left of a request never is one.
    let limit = Duration::from_micros(300_400);
    let patience = Patience::new(limit, OnOutage::FailFast);
    let open = Arc::<Flights>::default().alone(&key, patience);
    let since = Instant::now();
    let _question = open.flight().ask(patience);
    tokio::time::advance(limit).await;
    assert!(!open.flight().is_unanswered(since, limit));
    assert!(open.flight().is_unanswered(since, limit / 2));
}
