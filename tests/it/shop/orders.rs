//! Single orders: what is refused, and what Redis may forget.

use super::load::{Books, order_form};
use super::service::Service;

#[tokio::test]
async fn an_order_with_an_old_fence_changes_nothing_and_its_form_is_good_later() {
    let service = Service::start().await;
    let (product, cents) = service.product_with(12);
    let customer = service.customer("edsger").await;
    let form = customer.get(&format!("/buy/{product}")).await;
    let order = order_form(&form, product, 1);

    // As if another holder of the customer's lock had been here, later than all that come.
    set_fence(&service, i64::MAX);
    let late = customer.post("/orders", &order).await;
    assert_eq!(late.status, 503, "{}", late.text);
    assert!(late.text.contains("was not placed"), "{}", late.text);
    let books = Books::of(&service, product);
    assert_eq!((books.sold, books.credits["edsger"]), (0, 5_000));

    set_fence(&service, 0);
    assert_eq!(customer.post("/orders", &order).await.status, 303);
    let books = Books::of(&service, product);
    assert_eq!((books.sold, books.credits["edsger"]), (1, 5_000 - cents));
}

fn set_fence(service: &Service, fence: i64) {
    let sql = "UPDATE customer SET fence = ?1 WHERE name = 'edsger'";
    assert_eq!(service.database().execute(sql, [fence]).expect("SQL"), 1);
}

#[tokio::test]
async fn a_form_with_an_old_price_or_of_somebody_else_orders_nothing() {
    let service = Service::start().await;
    let (product, cents) = service.product_with(12);
    let (ada, grace) = (
        service.customer("ada").await,
        service.customer("grace").await,
    );
    let form = ada.get(&format!("/buy/{product}")).await;
    let order = order_form(&form, product, 1);
    let price = format!("product={product}&cents={}", cents + 10);
    assert_eq!(grace.post("/admin", &price).await.status, 403);
    assert_eq!(
        service.admin().await.post("/admin", &price).await.status,
        303
    );
    assert_eq!(ada.post("/orders", &order).await.status, 409);

    let form = ada.get(&format!("/buy/{product}")).await;
    let order = order_form(&form, product, 1);
    assert_eq!(ada.post("/orders", &order).await.status, 303);
    assert_eq!(grace.post("/orders", &order).await.status, 403);
    let receipt = format!("/orders/{}", form.field("token"));
    assert_eq!(grace.get(&receipt).await.status, 404);
    assert_eq!(Books::of(&service, product).sold, 1);
}

#[tokio::test]
async fn free_stock_begins_anew_from_the_database_when_redis_has_lost_it() {
    let service = Service::start().await;
    let stock = 7;
    let (product, _) = service.product_with(stock);
    let customer = service.customer("barbara").await;
    buy(&customer, product, 3).await;
    service.redis.run::<()>(&["FLUSHALL"]).await;

    // The sessions are lost with it.
    assert!(customer.get("/account").await.asks_for_login());
    let customer = service.customer("barbara-2").await;
    buy(&customer, product, 3).await;
    let free = service.client().counter(&format!("stock:{product}"));
    assert_eq!(free.get().await.expect("an answer"), 1);
    assert_eq!(Books::of(&service, product).sold, 6);
}

async fn buy(customer: &super::visitor::Visitor, product: i64, amount: i64) {
    let form = customer
        .get(&format!("/buy/{product}?amount={amount}"))
        .await;
    let order = order_form(&form, product, amount);
    let placed = customer.post("/orders", &order).await;
    assert_eq!(placed.status, 303, "{}", placed.text);
}
