//! How instances and their supervisor end.

use tokio::net::TcpStream;
use tokio::process::Command;

use super::service::{Instance, Service, binary};
use super::visitor::Visitor;
use crate::support::wait::until;

#[tokio::test]
async fn an_instance_ends_well_by_a_signal_and_with_its_parent() {
    let service = Service::start().await;
    let Service {
        instances: [first, second],
        ..
    } = service;
    first.signal("TERM");
    assert!(first.ends().await.success());
    assert!(second.ends_without_parent().await.success());
}

#[tokio::test]
async fn both_instances_share_pages_and_end_when_their_supervisor_is_killed() {
    let mut supervisor = Instance::start(Command::new(binary())).await;
    let addresses = [supervisor.address.clone(), supervisor.says().await];
    let visitor = Visitor::new(addresses.clone());
    until("one has the page that the other has rendered", async || {
        let first = visitor.get_from(0, "/products/7").await;
        let second = visitor.get_from(1, "/products/7").await;
        let by = [&first, &second].map(|page| page.header("x-answered-by"));
        assert_eq!(by, ["A", "B"]);
        second.is_hit() && first.text == second.text
    })
    .await;

    supervisor.signal("KILL");
    assert!(!supervisor.ends().await.success());
    for address in &addresses {
        let address = address.trim_start_matches("http://");
        until("nobody listens there", async || {
            TcpStream::connect(address).await.is_err()
        })
        .await;
    }
}
