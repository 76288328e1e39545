//! The administrator changes prices: first the database, then the pages that show them.

use axum::Router;
use axum::extract::{Form, Query, State};
use axum::response::{Html, Redirect};
use axum::routing::get;
use minijinja::{Value, context};
use serde::Deserialize;

use crate::account::LoggedIn;
use crate::catalogue::make_new;
use crate::problem::Problem;
use crate::state::Shop;
use crate::store::ADMIN;
use crate::view;

pub(crate) fn routes() -> Router<Shop> {
    Router::new().route("/admin", get(prices).post(set_price))
}

#[derive(Deserialize)]
struct Of {
    #[serde(default = "france")]
    country: String,
}

async fn prices(
    State(shop): State<Shop>,
    LoggedIn(name): LoggedIn,
    Query(Of { country }): Query<Of>,
) -> Result<Html<String>, Problem> {
    only_for_admin(&name)?;
    let products = shop.store.products_of(country.clone()).await?;
    let countries = shop.store.countries().await?;
    let countries: Value = countries.iter().map(|it| Value::from(&it.code)).collect();
    let content = context! { country, countries, products => view::products(&products) };
    view::page(&shop, "admin.html", content)
}

#[derive(Deserialize)]
struct NewPrice {
    product: i64,
    cents: i64,
}

async fn set_price(
    State(shop): State<Shop>,
    LoggedIn(name): LoggedIn,
    Form(NewPrice { product, cents }): Form<NewPrice>,
) -> Result<Redirect, Problem> {
    only_for_admin(&name)?;
    if !(1..=100_000).contains(&cents) {
        return Err(Problem::BadForm("A price is from 1 to 100000 cents."));
    }
    let product = shop.store.set_price(product, cents).await?;
    let product = product.ok_or(Problem::NotFound)?;
    // After the commit: a page that is rendered before it may show the old price, and this ends it.
    if let Err(error) = make_new(&shop, &product).await {
        eprintln!("shop: pages of product {} may be old: {error}", product.id);
        return Err(Problem::Unavailable(
            "The price is set. Pages may show the old one until the caches are back.",
        ));
    }
    Ok(Redirect::to(&format!("/admin?country={}", product.country)))
}

fn only_for_admin(name: &str) -> Result<(), Problem> {
    match name == ADMIN {
        true => Ok(()),
        false => Err(Problem::Forbidden),
    }
}

fn france() -> String {
    "FR".to_owned()
}
