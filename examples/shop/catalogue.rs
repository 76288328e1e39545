//! The public pages: the same for everybody, so they are rendered once for all.
//!
//! Two caches lie on one another. `shop.data` holds what was queried, `shop.pages` what was
//! rendered from it. Both carry the same tags, so one invalidation makes both new: see
//! [`make_new`].
//!
//! Nothing here looks at a cookie. What is private has pages of its own.

use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, HOST, HeaderValue};
use axum::middleware::map_request;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use hedgerow::Client;
use hedgerow::http::{CacheTags, PageCache, RateLimitLayer};
use hedgerow::limit::{LimitOutage, Quota};
use minijinja::{Value, context};
use serde::Deserialize;

use crate::problem::Problem;
use crate::state::Shop;
use crate::store::{Listing, Product, country_name};
use crate::view;

pub(crate) fn page_cache(client: &Client) -> PageCache {
    let no_cookies: [&str; 0] = [];
    PageCache::new(client.cache("pages"))
        .hosts([HOST_NAME])
        // No page depends on another parameter, so links with others share a page.
        .only_query(["q"])
        .login_cookies(no_cookies)
        // A page that is reloaded comes from the cache, too.
        .ignore_request_directives()
        .stale_while_revalidate(Duration::from_secs(30))
        .tags_by(|request| tags_of(request.uri.path()))
}

pub(crate) fn routes(shop: &Shop) -> Router<Shop> {
    let searches = shop
        .client
        .rate_limiter("search", Quota::per_minute(60).burst(20))
        // Searches that find Redis out are let through: each of them is cheap.
        .outage(LimitOutage::Open);
    let search = Router::new()
        .route("/search", get(search))
        .layer(shop.pages.clone())
        // Outside of the pages: what one client is refused is no page for another.
        .layer(RateLimitLayer::by_address(searches, shop.address.clone()));
    Router::new()
        .route("/", get(front))
        .route("/countries/{code}", get(country))
        .route("/products/{id}", get(product))
        .layer(shop.pages.clone())
        .merge(search)
        .layer(map_request(under_one_name))
}

/// Makes all pages new that show the product: when this has returned, no request that begins later
/// is given an older one, by any instance. If Redis is out, it fails, and the client goes on in the
/// background.
pub(crate) async fn make_new(shop: &Shop, product: &Product) -> hedgerow::Result<()> {
    let list = list_tag(&product.country);
    let tags = [product_tag(product.id), list, FRONT.to_owned()];
    shop.pages.purge_tags(tags).await
}

/// Does the same after an order: what is left of a product is shown on its own page only.
pub(crate) async fn stock_has_changed(shop: &Shop, product: i64) -> hedgerow::Result<()> {
    shop.pages.purge_tags([product_tag(product)]).await
}

async fn front(State(shop): State<Shop>) -> Result<Response, Problem> {
    let store = shop.store.clone();
    let load = move || async move { store.some_products().await };
    let some = shop.data.memoize("some", KEPT, load);
    let some = some.tags([FRONT]).await?;
    let store = shop.store.clone();
    let load = move || async move { store.countries().await };
    let countries = shop.data.memoize("countries", KEPT, load).await?;
    let countries: Value = countries
        .iter()
        .map(|it| context! { code => &it.code, products => it.products })
        .collect();
    let content = context! { products => view::products(&some), countries };
    public(&shop, "front.html", content)
}

async fn country(State(shop): State<Shop>, Path(code): Path<String>) -> Result<Response, Problem> {
    let name = country_name(&code).ok_or(Problem::NotFound)?;
    let (store, of) = (shop.store.clone(), code.clone());
    let load = move || async move { store.products_of(of).await };
    let listing = shop.data.memoize(&list_tag(&code), KEPT, load);
    let listing = listing.tags([list_tag(&code)]).await?;
    let content = context! { title => name, products => view::products(&listing) };
    public(&shop, "list.html", content)
}

async fn product(State(shop): State<Shop>, Path(id): Path<i64>) -> Result<Response, Problem> {
    let (store, tag) = (shop.store.clone(), product_tag(id));
    let load = move || async move { store.product(id).await };
    let product = shop.data.memoize(&tag, KEPT, load);
    let product = product.tags([&tag]).await?;
    let product = Option::as_ref(&product).ok_or(Problem::NotFound)?;
    public(
        &shop,
        "product.html",
        context! { product => view::product(product) },
    )
}

#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    q: String,
}

/// A search is too rare to keep its data. Its page is kept for a while.
async fn search(
    State(shop): State<Shop>,
    Query(Search { q }): Query<Search>,
) -> Result<Response, Problem> {
    let text: String = q.trim().chars().take(LONGEST_SEARCH).collect();
    let found = match text.is_empty() {
        true => Listing::new(),
        false => shop.store.products_like(&text).await?,
    };
    let content = context! {
        title => format!("Postcards like “{text}”"),
        search => text,
        products => view::products(&found),
    };
    Ok((shown(&found), public(&shop, "list.html", content)?).into_response())
}

/// A page that everybody may be given.
fn public(shop: &Shop, template: &str, content: Value) -> Result<Response, Problem> {
    let page = view::page(shop, template, content)?;
    let policy = match shop.redis.is_out() {
        // It says so in its footer, which must not last longer than that.
        true => "no-store",
        // Browsers ask each time, and are told by 304 that nothing has changed: no purge reaches
        // what they keep themselves.
        false => "public, max-age=0, s-maxage=60",
    };
    let policy = HeaderValue::from_static(policy);
    Ok(([(CACHE_CONTROL, policy)], page).into_response())
}

/// The tags that follow from the path alone. They are known before the page is rendered.
fn tags_of(path: &str) -> Vec<String> {
    let mut segments = path.split('/').skip(1);
    match (segments.next(), segments.next()) {
        (Some("products"), Some(id)) => vec![format!("product:{id}")],
        (Some("countries"), Some(code)) => vec![list_tag(code)],
        (Some(""), None) => vec![FRONT.to_owned()],
        _ => Vec::new(),
    }
}

/// The tags of a page that follow only from what it shows.
fn shown(listing: &[Product]) -> Extension<CacheTags> {
    let tags = listing.iter().map(|product| product_tag(product.id));
    Extension(CacheTags::new(tags))
}

fn product_tag(id: i64) -> String {
    format!("product:{id}")
}

fn list_tag(country: &str) -> String {
    format!("list:{country}")
}

/// All instances share their pages, whatever address they are asked by. Behind a proxy that keeps
/// `Host`, name the host of your site instead.
async fn under_one_name(mut request: Request) -> Request {
    let name = HeaderValue::from_static(HOST_NAME);
    request.headers_mut().insert(HOST, name);
    request
}

/// The tag of the front page, and of what it shows.
const FRONT: &str = "front";
const HOST_NAME: &str = "shop.example";
const LONGEST_SEARCH: usize = 40;

/// How long data is kept if nothing changes it.
const KEPT: Duration = Duration::from_secs(600);
