//! A client of sentinels whose first call stands still, or is polled once: the search for the
//! primary goes on, and holds up no call of another.

use std::pin::pin;

use futures::poll;
use hedgerow::Client;
use tokio::runtime::{Builder, Runtime};

use crate::support::topology::{Node, Sentinels, lease_sentinels};
use crate::support::wait::{bounded, patient};

fn client(servers: &Sentinels) -> Client {
    let sentinels = servers.sentinels().iter().map(Node::url);
    let builder = Client::builder().sentinels(sentinels, Sentinels::NAME);
    patient(builder).open().expect("good URLs")
}

#[tokio::test]
async fn a_first_call_that_is_polled_once_holds_up_no_other() {
    let servers = lease_sentinels().await;
    let client = client(&servers);
    let mut kept = pin!(client.counter("kept").add(1).into_future());
    assert!(poll!(&mut kept).is_pending(), "the sentinels are asked");
    let added = client.counter("views").add(1).await.expect("added");
    assert_eq!(added.value, 1);
    let kept = bounded("the kept one goes on", kept).await;
    assert_eq!(kept.expect("added, however late").value, 1);
}

#[test]
fn a_first_call_whose_runtime_stands_still_holds_up_no_other() {
    let here = Runtime::new().expect("a runtime");
    let idle = Builder::new_current_thread().enable_all().build();
    let idle = idle.expect("a runtime");
    let servers = here.block_on(lease_sentinels());
    let client = client(&servers);
    let counter = client.counter("views");
    let call = counter.clone();
    let kept = idle.spawn(async move { call.add(1).await });
    idle.block_on(tokio::task::yield_now());
    assert!(!kept.is_finished(), "the sentinels are asked");
    let added = here.block_on(counter.add(1).into_future());
    assert_eq!(added.expect("added").value, 1);
    let kept = idle.block_on(bounded("the kept one goes on", kept));
    let kept = kept.expect("no panic").expect("added, however late");
    assert_eq!(kept.value, 2);
    let _inside = here.enter();
    drop((client, counter, servers));
}
