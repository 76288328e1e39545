//! A client that is used on several runtimes, one after the other.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::server::Server;
use crate::wait::{bounded, queued};

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn a_name_can_be_waited_for_again_after_the_runtime_of_its_waiters_is_gone() {
    let main = runtime();
    let (server, client, holder) = main.block_on(async {
        let server = Server::start().await;
        let client = server.client().await;
        let holder = server.client().await.lock("l");
        (server, client, holder)
    });
    let guard = main.block_on(holder.acquire()).expect("free");
    let lock = client.lock("l").wait(Duration::from_secs(50));

    let short_lived = runtime();
    let waiting = lock.clone();
    short_lived.spawn(async move { waiting.acquire().await });
    main.block_on(queued(&holder, 1));
    drop(short_lived);

    main.block_on(async {
        let again = tokio::spawn(async move { lock.acquire().await });
        queued(&holder, 1).await;
        guard.release().await.expect("held");
        let again = bounded("the lock comes to the waiter on the other runtime", again).await;
        let guard = again.expect("no panic").expect("granted");
        guard.release().await.expect("held");
        drop(server);
    });
}
