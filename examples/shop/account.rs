//! Logging in and out, and the sessions of a customer.
//!
//! Invariant: a logout is final. A request that loaded the session before and ends after it brings
//! nothing back; the session store sees to that. No page here is kept by a browser or a cache.

use axum::Router;
use axum::extract::{Form, FromRequestParts, Query, State};
use axum::http::header::{HeaderMap, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use hedgerow::Client;
use hedgerow::session::SessionStore;
use minijinja::{Value, context};
use serde::Deserialize;
use tower_sessions::cookie::SameSite;
use tower_sessions::{Expiry, Session, SessionManagerLayer};

use crate::login_limits::Tries;
use crate::problem::Problem;
use crate::state::Shop;
use crate::view;

pub(crate) fn session_store(client: &Client) -> SessionStore {
    SessionStore::new(client.cache("sessions")).user_key(CUSTOMER)
}

pub(crate) fn session_layer(store: SessionStore) -> SessionManagerLayer<SessionStore> {
    SessionManagerLayer::new(store)
        .with_name("sid")
        // This example speaks plain HTTP. Leave this line out behind TLS.
        .with_secure(false)
        // With Lax, no form of another site is sent with the cookie, and links to here work.
        .with_same_site(SameSite::Lax)
        .with_expiry(Expiry::OnInactivity(time::Duration::days(14)))
        // Each request moves the end of the session, without writing it anew.
        .with_always_save(true)
}

pub(crate) fn routes() -> Router<Shop> {
    Router::new()
        .route("/login", get(login_page).post(log_in))
        .route("/signup", post(sign_up))
        .route("/logout", post(log_out))
        .route("/logout-everywhere", post(log_out_everywhere))
        .route("/account", get(account))
        .route("/account/end-session", post(end_session))
}

/// The customer who is logged in. Without one, a request is sent to the login page.
#[derive(Debug, Clone)]
pub(crate) struct LoggedIn(pub(crate) String);

impl FromRequestParts<Shop> for LoggedIn {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, shop: &Shop) -> Result<Self, Response> {
        let session = Session::from_request_parts(parts, shop).await;
        let session = session.map_err(IntoResponse::into_response)?;
        let customer = session.get(CUSTOMER).await;
        match customer.map_err(|error| Problem::from(error).into_response())? {
            Some(name) => Ok(Self(name)),
            None => {
                let asked = parts.uri.path_and_query().map_or("/", |it| it.as_str());
                // A form is not sent again by itself.
                let next = match parts.method == Method::GET {
                    true => form_urlencoded(asked),
                    false => "/account".to_owned(),
                };
                Err(Redirect::to(&format!("/login?next={next}")).into_response())
            }
        }
    }
}

#[derive(Deserialize)]
struct Next {
    #[serde(default)]
    next: String,
}

async fn login_page(
    State(shop): State<Shop>,
    Query(Next { next }): Query<Next>,
) -> Result<Html<String>, Problem> {
    view::page(&shop, "login.html", context! { next })
}

#[derive(Deserialize)]
struct Login {
    name: String,
    password: String,
    #[serde(default)]
    next: String,
}

async fn log_in(
    State(shop): State<Shop>,
    tries: Tries,
    session: Session,
    headers: HeaderMap,
    Form(login): Form<Login>,
) -> Result<Response, Problem> {
    let name = login.name.trim().to_lowercase();
    tries.take_one(&shop, &name).await?;
    let fits = shop
        .store
        .password_fits(name.clone(), login.password)
        .await?;
    if !fits {
        let why = "There is no account with this name and this password.";
        return again(&shop, &name, &login.next, why);
    }
    begin(&session, &name, &headers).await?;
    Ok(Redirect::to(local(&login.next)).into_response())
}

async fn sign_up(
    State(shop): State<Shop>,
    tries: Tries,
    session: Session,
    headers: HeaderMap,
    Form(login): Form<Login>,
) -> Result<Response, Problem> {
    let name = login.name.trim().to_lowercase();
    tries.take_one(&shop, &name).await?;
    if !is_name(&name) || login.password.chars().count() < SHORTEST_PASSWORD {
        let why =
            "A name has 2 to 24 letters, digits and hyphens; a password at least 8 characters.";
        return again(&shop, &name, &login.next, why);
    }
    if !shop.store.sign_up(name.clone(), login.password).await? {
        return again(&shop, &name, &login.next, "This name is taken.");
    }
    begin(&session, &name, &headers).await?;
    Ok(Redirect::to(local(&login.next)).into_response())
}

/// Begins a session of the customer, under a new id: one that the browser had before a login is
/// worth nothing after it.
async fn begin(session: &Session, name: &str, headers: &HeaderMap) -> Result<(), Problem> {
    session.flush().await?;
    session.insert(CUSTOMER, name).await?;
    let agent = headers.get(USER_AGENT).and_then(|it| it.to_str().ok());
    session
        .insert(BROWSER, browser(agent.unwrap_or_default()))
        .await?;
    // Here and not only by the layer, so that an outage is seen before the customer is told that
    // all went well.
    Ok(session.save().await?)
}

async fn log_out(session: Session) -> Result<Redirect, Problem> {
    session.flush().await?;
    Ok(Redirect::to("/login"))
}

async fn log_out_everywhere(
    State(shop): State<Shop>,
    LoggedIn(name): LoggedIn,
    session: Session,
) -> Result<Redirect, Problem> {
    shop.sessions.log_out_everywhere(&name).await?;
    session.flush().await?;
    Ok(Redirect::to("/login"))
}

async fn account(
    State(shop): State<Shop>,
    LoggedIn(name): LoggedIn,
    session: Session,
) -> Result<Html<String>, Problem> {
    let customer = shop.store.customer(name.clone()).await?;
    let customer = customer.ok_or(Problem::Forbidden)?;
    let orders = shop.store.orders_of(name.clone()).await?;
    let own = session.id().map(|id| shop.sessions.digest(&id));
    let sessions = shop.sessions.sessions_of(&name).await?;
    let sessions: Value = sessions
        .iter()
        .map(|it| {
            context! {
                digest => &it.digest,
                browser => it.get::<String>(BROWSER),
                since => day_and_time(it.created),
                last_seen => day_and_time(it.last_seen),
                is_this => own.as_ref() == Some(&it.digest),
            }
        })
        .collect();
    let content = context! {
        name => customer.name,
        credit => customer.credit,
        orders => orders.iter().map(view::order).collect::<Value>(),
        sessions,
    };
    view::page(&shop, "account.html", content)
}

#[derive(Deserialize)]
struct EndSession {
    digest: String,
}

async fn end_session(
    State(shop): State<Shop>,
    LoggedIn(name): LoggedIn,
    Form(EndSession { digest }): Form<EndSession>,
) -> Result<Redirect, Problem> {
    shop.sessions.revoke(&name, &digest).await?;
    Ok(Redirect::to("/account"))
}

/// The login page once more, saying why.
fn again(shop: &Shop, name: &str, next: &str, why: &str) -> Result<Response, Problem> {
    let page = view::page(shop, "login.html", context! { name, next, why })?;
    Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
}

/// Where to go after a login: to a page of this shop, whatever the form says.
fn local(next: &str) -> &str {
    let is_local = next.starts_with('/') && !next.starts_with("//") && !next.contains('\\');
    match is_local {
        true => next,
        false => "/account",
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (2..=24).contains(&name.len()) && name.bytes().all(allowed)
}

/// What a customer knows a browser by.
fn browser(agent: &str) -> String {
    // Most of them also say that they are those below them.
    let known = |names: &[&'static str]| names.iter().copied().find(|it| agent.contains(it));
    let name = known(&["Edg", "OPR", "Firefox", "Chrome", "Safari"]);
    let system = known(&["Android", "iPhone", "iPad", "Windows", "Mac OS", "Linux"]);
    let (name, system) = (
        name.unwrap_or("A program"),
        system.unwrap_or("something else"),
    );
    format!("{name} on {system}")
}

/// A path and query as the value of a parameter.
fn form_urlencoded(text: &str) -> String {
    text.replace('%', "%25")
        .replace('&', "%26")
        .replace('+', "%2B")
}

fn day_and_time(moment: time::OffsetDateTime) -> String {
    let (hour, minute) = (moment.hour(), moment.minute());
    format!("{}, {hour:02}:{minute:02} UTC", moment.date())
}

/// Under these keys, a session says whose it is and what browser it began in.
const CUSTOMER: &str = "customer";
const BROWSER: &str = "browser";

const SHORTEST_PASSWORD: usize = 8;
