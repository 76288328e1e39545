//! Orders that were opened and never finished.

use std::time::Duration;

use super::load::{Books, order_form};
use super::service::Service;
use crate::support::wait::until;

#[tokio::test]
async fn the_stock_of_an_order_that_nobody_finishes_comes_back() {
    let service = Service::start_with(&["--patience", "20", "--give-up-after", "1"]).await;
    let (product, cents) = service.product_with(14);
    let customer = service.customer("barbara").await;
    let form = customer.get(&format!("/buy/{product}")).await;
    let placed = customer
        .post("/orders", &order_form(&form, product, 1))
        .await;
    assert_eq!(placed.status, 303, "{}", placed.text);

    // As an instance leaves it that is killed after it has taken the stock.
    let token = "0123456789abcdef0123456789abcdef";
    let free = service.client().counter(&format!("stock:{product}"));
    let take = free.add(-3).within(0..=i64::MAX);
    let taken = take.once(token, Duration::from_secs(3600)).await;
    assert_eq!(taken.expect("an answer").value, 10);
    let inserted = service.database().execute(
        "INSERT INTO purchase (token, customer, product, amount, cents, state, opened)
         VALUES (?1, 'barbara', ?2, 3, ?3, 'open', unixepoch() - 60)",
        rusqlite::params![token, product, cents * 3],
    );
    assert_eq!(inserted.expect("SQL"), 1);

    until("the stock is back", async || {
        free.get().await.expect("an answer") == 13
    })
    .await;
    until("the order is refused", async || {
        let page = customer.get(&format!("/orders/{token}")).await;
        page.text.contains("data-order=\"refused\"")
    })
    .await;
    // Its form comes late: it is refused, and takes nothing.
    let form = format!("token={token}&product={product}&amount=3&cents={cents}");
    assert_eq!(customer.post("/orders", &form).await.status, 303);
    assert_eq!(free.get().await.expect("an answer"), 13);
    let books = Books::of(&service, product);
    assert_eq!((books.sold, books.credits["barbara"]), (1, 5_000 - cents));
}
