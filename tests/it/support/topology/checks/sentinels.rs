//! Sentinels: they see the primary, and promote another.

use crate::support::topology::Sentinels;
use crate::support::wait::until;

#[tokio::test]
async fn sentinels_promote_a_replica_when_asked() {
    let sentinels = Sentinels::start().await;
    let old = sentinels.master_addr().await;
    let _: String = sentinels.primary().await.run(&["SET", "a", "1"]).await;
    sentinels.failover().await;
    assert_ne!(sentinels.master_addr().await, old);
    let value: String = sentinels.primary().await.run(&["GET", "a"]).await;
    assert_eq!(value, "1");
}

#[tokio::test]
async fn sentinels_with_passwords_promote_a_replica_when_the_primary_dies() {
    let sentinels = Sentinels::start_with(Some("data-secret"), Some("watch-secret")).await;
    let old = sentinels.master_addr().await;
    sentinels.primary().await.kill().await;
    sentinels.moved_from(&old).await;
    let _: String = sentinels.primary().await.run(&["SET", "a", "1"]).await;
    let first = &sentinels.data().nodes()[0];
    first.start_again().await;
    // Sentinels do nothing for half a minute after the machine has stood still.
    let follows = async || first.info("replication", "role").await == "slave";
    until(
        "the old primary follows, or sentinels are in TILT",
        async || follows().await || sentinels.are_in_tilt().await,
    )
    .await;
    until("no sentinel is in TILT", async || {
        !sentinels.are_in_tilt().await
    })
    .await;
    until("the old primary follows the new one", follows).await;
}

#[tokio::test]
async fn sentinels_leave_a_paused_primary_behind() {
    let sentinels = Sentinels::start().await;
    let old = sentinels.master_addr().await;
    let paused = sentinels.primary().await;
    paused.stop();
    sentinels.moved_from(&old).await;
    let _: String = sentinels.primary().await.run(&["SET", "a", "1"]).await;
    // It believes that it is the primary until the sentinels tell it otherwise, seconds later.
    paused.resume();
    let none: Option<String> = paused.run(&["GET", "a"]).await;
    assert_eq!(none, None);
}
