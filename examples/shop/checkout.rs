//! Buying: a page that asks once more, and a receipt. How an order is placed is in `order.rs`.

use axum::Router;
use axum::extract::{Form, Path, Query, State};
use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use minijinja::context;
use serde::Deserialize;

use crate::account::LoggedIn;
use crate::order;
use crate::problem::Problem;
use crate::state::Shop;
use crate::store::{Draft, OrderState};
use crate::view;

pub(crate) fn routes() -> Router<Shop> {
    Router::new()
        .route("/buy/{product}", get(buy))
        .route("/orders", post(send))
        .route("/orders/{token}", get(receipt))
}

#[derive(Deserialize)]
struct Amount {
    #[serde(default = "one")]
    amount: i64,
}

/// Asks once more. What it shows is read from the database, not from a cache: it is what the
/// customer agrees to.
async fn buy(
    State(shop): State<Shop>,
    LoggedIn(name): LoggedIn,
    Path(product): Path<i64>,
    Query(Amount { amount }): Query<Amount>,
) -> Result<Html<String>, Problem> {
    let amount = amount.clamp(1, MOST_AT_ONCE);
    let product = shop
        .store
        .product(product)
        .await?
        .ok_or(Problem::NotFound)?;
    let customer = shop.store.customer(name).await?.ok_or(Problem::Forbidden)?;
    let content = context! {
        // Drawn here, once for each form. A form that is sent twice makes one order.
        token => uuid::Uuid::new_v4().simple().to_string(),
        amount,
        total => product.cents * amount,
        credit => customer.credit,
        product => view::product(&product),
    };
    view::page(&shop, "buy.html", content)
}

#[derive(Deserialize)]
struct OrderForm {
    token: String,
    product: i64,
    amount: i64,
    cents: i64,
}

async fn send(
    State(shop): State<Shop>,
    LoggedIn(customer): LoggedIn,
    Form(form): Form<OrderForm>,
) -> Result<Redirect, Problem> {
    let is_token = form.token.len() == 32 && form.token.bytes().all(|it| it.is_ascii_hexdigit());
    if !is_token || !(1..=MOST_AT_ONCE).contains(&form.amount) {
        return Err(Problem::BadForm(
            "This form is not one of ours. Go back to the postcard.",
        ));
    }
    let draft = Draft {
        token: form.token,
        customer,
        product: form.product,
        amount: form.amount,
        cents: form.cents,
    };
    // In a task of its own: an order is finished, whether or not the browser waits for it.
    let placing = tokio::spawn(async move { order::place(&shop, draft).await });
    let order = placing.await.map_err(anyhow::Error::from)??;
    Ok(Redirect::to(&format!("/orders/{}", order.token)))
}

async fn receipt(
    State(shop): State<Shop>,
    LoggedIn(name): LoggedIn,
    Path(token): Path<String>,
) -> Result<Html<String>, Problem> {
    let order = shop.store.order(token, name).await?;
    let order = order.ok_or(Problem::NotFound)?;
    let state = match order.state {
        OrderState::Open => "open",
        OrderState::Placed => "placed",
        OrderState::Refused => "refused",
    };
    view::page(
        &shop,
        "order.html",
        context! { state, order => view::order(&order) },
    )
}

fn one() -> i64 {
    1
}

const MOST_AT_ONCE: i64 = 5;
