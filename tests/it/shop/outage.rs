//! Redis is killed in mid-load and comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinSet;

use super::load::{Books, order_form};
use super::service::Service;
use super::visitor::Visitor;
use crate::support::wait::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_go_on_sessions_say_503_and_no_order_is_lost_or_doubled() {
    // As it is in production: nobody waits for long while Redis is out.
    let service = Service::start_with(&[]).await;
    let (product, cents) = service.product_with(40);
    let mut customers = Vec::new();
    for number in 0..4 {
        customers.push(service.customer(&format!("buyer-{number}")).await);
    }
    let (is_over, placed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );

    let mut visits = JoinSet::new();
    for path in ["/".to_owned(), format!("/products/{product}")] {
        let (visitor, is_over) = (service.visitor(), is_over.clone());
        visits.spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                let page = visitor.get(&path).await;
                assert_eq!(page.status, 200, "{path}: {}", page.text);
            }
        });
    }
    for customer in customers.clone() {
        let is_over = is_over.clone();
        visits.spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                let page = customer.get("/account").await;
                assert!(
                    [200, 503].contains(&page.status),
                    "{} {}",
                    page.status,
                    page.text
                );
            }
        });
    }
    let mut buyers = JoinSet::new();
    for customer in customers.clone() {
        let placed = placed.clone();
        buyers.spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..8 {
                tokens.push(buy_with_patience(&customer, product).await);
                placed.fetch_add(1, Ordering::SeqCst);
            }
            tokens
        });
    }

    until("orders are placed", async || {
        placed.load(Ordering::SeqCst) >= 4
    })
    .await;
    service.redis.kill().await;
    for instance in 0..2 {
        until("sessions say 503", async || {
            let page = customers[0].get_from(instance, "/account").await;
            page.status == 503 && page.text.contains("still logged in")
        })
        .await;
        until("pages say that Redis is out", async || {
            let page = customers[0].get_from(instance, "/").await;
            page.status == 200
                && page.text.contains("Redis is out")
                && page.header("cache-control") == "no-store"
        })
        .await;
        let health = customers[0].get_from(instance, "/health").await;
        assert_eq!(health.status, 200);
        assert!(health.text.contains("\"redis\":\"out\""), "{}", health.text);
    }
    let form = format!(
        "token={}&product={product}&amount=1&cents={cents}",
        "0".repeat(32)
    );
    let refused = customers[0].post("/orders", &form).await;
    assert_eq!(refused.status, 503, "{}", refused.text);

    service.redis.start_again().await;
    for customer in &customers {
        until("the same session works again", async || {
            customer.get("/account").await.status == 200
        })
        .await;
    }
    let mut tokens = Vec::new();
    while let Some(bought) = buyers.join_next().await {
        tokens.extend(bought.expect("every order was placed at last"));
    }
    is_over.store(true, Ordering::SeqCst);
    while let Some(visit) = visits.join_next().await {
        visit.expect("no page and no account has failed");
    }

    let books = Books::of(&service, product);
    assert_eq!(tokens.len(), 32);
    assert_eq!(books.sold, 32);
    for number in 0..4 {
        let name = format!("buyer-{number}");
        assert_eq!(books.amounts[&name], 8);
        assert_eq!(books.credits[&name], 5_000 - 8 * cents);
    }
    let free = service.client().counter(&format!("stock:{product}"));
    assert_eq!(free.get().await.expect("an answer"), 40 - 32);
    until("pages come from the cache again", async || {
        let page = service.visitor().get("/").await;
        page.is_hit() && !page.text.contains("Redis is out")
    })
    .await;
}

/// Sends one form until it is taken. Returns its token.
async fn buy_with_patience(customer: &Visitor, product: i64) -> String {
    let path = format!("/buy/{product}");
    let form = loop {
        let page = customer.get(&path).await;
        match page.status {
            200 => break page,
            503 => tokio::task::yield_now().await,
            status => panic!("{status} {}", page.text),
        }
    };
    let order = order_form(&form, product, 1);
    loop {
        let answer = customer.post("/orders", &order).await;
        match answer.status {
            303 => break,
            503 => tokio::task::yield_now().await,
            status => panic!("{status} {}", answer.text),
        }
    }
    let token = form.field("token").to_owned();
    let receipt = format!("/orders/{token}");
    loop {
        let page = customer.get(&receipt).await;
        match page.status {
            200 => {
                assert!(page.text.contains("data-order=\"placed\""), "{}", page.text);
                return token;
            }
            503 => tokio::task::yield_now().await,
            status => panic!("{status} {}", page.text),
        }
    }
}
