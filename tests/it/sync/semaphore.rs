//! Semaphores: what a user sees.

use std::time::Duration;

use hedgerow::ErrorKind;

use crate::support::server::Server;

#[tokio::test]
async fn permits_are_granted_up_to_the_limit_and_again_once_they_are_back() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.semaphore("a", 3).weight(2).acquire().await;
    let first = first.expect("free");
    let second = two.semaphore("a", 3).acquire().await.expect("one is left");
    let third = two
        .semaphore("a", 3)
        .try_acquire()
        .await
        .expect("an answer");
    assert!(third.is_none());
    let late = two.semaphore("a", 3).wait(Duration::from_secs(2));
    let late = late.acquire().await.expect_err("all are held");
    assert_eq!(late.kind(), ErrorKind::Contended);
    assert!(late.to_string().contains("3 permits are held"), "{late}");
    first.release().await.expect("held until now");
    let wide = two.semaphore("a", 3).weight(2).acquire().await;
    wide.expect("two are back").release().await.expect("held");
    second.release().await.expect("held until now");
}
