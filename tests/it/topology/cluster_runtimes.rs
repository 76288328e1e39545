//! A cluster client on several runtimes, one of which stands still, and a call that is polled once:
//! they hold up no call of another.

use std::pin::pin;
use std::time::Duration;

use futures::poll;
use hedgerow::{Client, ClientBuilder};
use tokio::runtime::{Builder, Runtime};

use crate::support::topology::{Node, lease_cluster};
use crate::support::wait::until;

fn builder(nodes: &[Node]) -> ClientBuilder {
    Client::builder().cluster(nodes.iter().map(Node::url))
}

#[tokio::test]
async fn a_first_call_that_is_polled_once_holds_up_no_other() {
    let cluster = lease_cluster().await;
    let client = builder(cluster.nodes()).open().expect("good seeds");
    let mut kept = pin!(client.counter("kept").add(1).into_future());
    assert!(
        poll!(&mut kept).is_pending(),
        "the slots are asked for first"
    );
    let added = client.counter("views").add(1).await.expect("added");
    assert_eq!(added.value, 1);
    let kept = kept.await.expect("added, however late");
    assert_eq!(kept.value, 1);
}

#[test]
fn a_first_call_whose_runtime_stands_still_holds_up_no_other() {
    let (here, idle) = (Runtime::new().expect("a runtime"), single());
    let cluster = here.block_on(lease_cluster());
    let client = builder(cluster.nodes()).open().expect("good seeds");
    let counter = client.counter("views");
    let call = counter.clone();
    let kept = idle.spawn(async move { call.add(1).await });
    idle.block_on(tokio::task::yield_now());
    assert!(!kept.is_finished(), "the slots are asked for first");
    let added = here.block_on(counter.add(1).into_future());
    assert_eq!(added.expect("added").value, 1);
    let kept = idle.block_on(kept).expect("no panic");
    assert_eq!(kept.expect("added, however late").value, 2);
    let _inside = here.enter();
    drop((client, counter, cluster));
}

#[tokio::test]
async fn callers_that_are_all_in_a_hurry_find_the_servers_too() {
    let cluster = lease_cluster().await;
    let client = builder(cluster.nodes()).open().expect("good seeds");
    let counter = client.counter("views");
    let hurry = Duration::from_millis(15);
    until("a call is served", async || {
        counter.get().deadline(hurry).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_first_call_outside_of_a_runtime_panics_and_keeps_no_other_waiting() {
    let cluster = lease_cluster().await;
    let client = builder(cluster.nodes()).open().expect("good seeds");
    let counter = client.counter("views");
    let outside = {
        let counter = counter.clone();
        std::thread::spawn(move || {
            futures::executor::block_on(counter.get().into_future()).expect("a value")
        })
    };
    outside.join().expect_err("there is no runtime");
    assert_eq!(counter.get().await.expect("read"), 0);
}

fn single() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}
