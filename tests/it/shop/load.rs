//! Load on both instances, with a writer: what must never be seen.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use futures::future::join_all;
use tokio::task::JoinSet;

use super::service::Service;
use super::visitor::Visitor;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_is_older_than_a_price_change_that_has_returned() {
    let service = Service::start().await;
    let (product, cents) = service.product_with(12);
    let country: String = service
        .database()
        .query_row(
            "SELECT country FROM product WHERE id = ?1",
            [product],
            |row| row.get(0),
        )
        .expect("it is there");
    // Prices only rise, so the last one that is known to be set is the least that may be seen.
    let known = Arc::new(AtomicI64::new(cents));
    let (is_over, hits) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut readers = JoinSet::new();
    for reader in 0..6 {
        let (visitor, country) = (service.visitor(), country.clone());
        let (known, is_over, hits) = (known.clone(), is_over.clone(), hits.clone());
        readers.spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                let least = known.load(Ordering::SeqCst);
                let page = match reader % 3 {
                    0 => visitor.get(&format!("/countries/{country}")).await,
                    _ => visitor.get(&format!("/products/{product}")).await,
                };
                let shown = match reader % 3 {
                    0 => price_in_list(&page.text, product),
                    _ => page.number("data-cents"),
                };
                assert!(
                    shown >= least,
                    "{shown} is older than {least}: {}",
                    page.text
                );
                hits.fetch_add(usize::from(page.is_hit()), Ordering::SeqCst);
            }
        });
    }
    let admin = service.admin().await;
    for step in 1..=40 {
        let form = format!("product={product}&cents={}", cents + step);
        let page = admin.post("/admin", &form).await;
        assert_eq!(page.status, 303, "{}", page.text);
        known.store(cents + step, Ordering::SeqCst);
        // The readers have time to fill the caches, whatever the machine does beside.
        let before = hits.load(Ordering::SeqCst);
        crate::support::wait::until("pages come from the cache", async || {
            hits.load(Ordering::SeqCst) > before + 3
        })
        .await;
    }
    is_over.store(true, Ordering::SeqCst);
    while let Some(reader) = readers.join_next().await {
        reader.expect("no page was older");
    }
}

/// What the card of a product says it costs, in cents.
fn price_in_list(text: &str, product: i64) -> i64 {
    let card = text.split(&format!("href=\"/products/{product}\"")).nth(1);
    let price = card.and_then(|card| card.split('€').nth(1));
    let price = price
        .and_then(|rest| rest.split('<').next())
        .unwrap_or_default();
    price.replace('.', "").parse().expect("a price")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stock_is_oversold_and_each_form_makes_one_order() {
    let service = Service::start().await;
    let stock = 11;
    let (product, cents) = service.product_with(stock);
    let names: Vec<String> = (0..8).map(|number| format!("buyer-{number}")).collect();
    let mut customers = Vec::new();
    for name in &names {
        customers.push(service.customer(name).await);
    }
    // Each customer fills in two forms, and sends each of them three times at once, to both
    // instances: 8 * 2 * 2 are more than there are.
    let sent = customers.iter().map(|customer| async move {
        join_all((0..2).map(|_| buy_impatiently(customer, product, 2))).await
    });
    let states: Vec<String> = join_all(sent).await.into_iter().flatten().collect();

    let placed = states.iter().filter(|state| *state == "placed").count() as i64;
    let books = Books::of(&service, product);
    assert_eq!(books.amounts.values().sum::<i64>(), books.sold);
    assert_eq!(placed * 2, books.sold, "{states:?}");
    // Five orders of two fit into eleven, and a sixth does not.
    assert_eq!(books.sold, 10);
    for (customer, amount) in &books.amounts {
        assert_eq!(
            books.credits[customer],
            5_000 - amount * cents,
            "{customer}"
        );
    }
    let free = service.client().counter(&format!("stock:{product}"));
    assert_eq!(free.get().await.expect("an answer"), stock - books.sold);
    let page = service.visitor().get(&format!("/products/{product}")).await;
    assert_eq!(
        page.number("data-left"),
        stock - books.sold,
        "{}",
        page.text
    );
}

/// Fills in a form and sends it three times at once. Returns what its receipt says.
async fn buy_impatiently(customer: &Visitor, product: i64, amount: i64) -> String {
    let form = customer
        .get(&format!("/buy/{product}?amount={amount}"))
        .await;
    let order = order_form(&form, product, amount);
    let answers = join_all((0..3).map(|_| customer.post("/orders", &order))).await;
    let receipt = format!("/orders/{}", form.field("token"));
    let mut is_known = false;
    for answer in &answers {
        // One that waits too long for the others is asked to come again.
        assert!([303, 503].contains(&answer.status), "{}", answer.text);
        is_known |= answer.header("location") == receipt;
    }
    assert!(is_known, "one of them was answered");
    customer
        .get(&receipt)
        .await
        .between("data-order=\"", "\"")
        .to_owned()
}

/// The body that the form of a page sends.
pub fn order_form(page: &super::visitor::Page, product: i64, amount: i64) -> String {
    let (token, cents) = (page.field("token"), page.field("cents"));
    assert_eq!(token.len(), 32, "{} {}", page.status, page.text);
    format!("token={token}&product={product}&amount={amount}&cents={cents}")
}

/// What the database says of one product and of everybody.
pub struct Books {
    pub sold: i64,
    /// What each customer has of it.
    pub amounts: HashMap<String, i64>,
    pub credits: HashMap<String, i64>,
}

impl Books {
    pub fn of(service: &Service, product: i64) -> Self {
        let database = service.database();
        let table = |sql: &str| -> HashMap<String, i64> {
            let mut query = database.prepare(sql).expect("SQL");
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            rows.expect("rows").map(|row| row.expect("a row")).collect()
        };
        let sql = "SELECT sold FROM product WHERE id = ?1";
        Self {
            sold: database
                .query_row(sql, [product], |row| row.get(0))
                .expect("a number"),
            amounts: table(&format!(
                "SELECT customer, sum(amount) FROM purchase
                 WHERE product = {product} AND state = 'placed' GROUP BY customer"
            )),
            credits: table("SELECT name, credit FROM customer"),
        }
    }
}
