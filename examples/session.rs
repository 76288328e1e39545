//! A service with logins: sessions in Redis, one extractor for whoever is logged in, and a logout
//! that is final, here and everywhere. It then uses itself over HTTP, with two browsers.
//!
//! ```text
//! cargo run --example session --features embedded,session
//! ```

use axum::extract::{Form, FromRequestParts, State};
use axum::http::{StatusCode, request::Parts};
use axum::{Router, routing::get, routing::post};
use hedgerow::Client;
use hedgerow::session::{SessionStore, Trouble};
use tower_sessions::{Expiry, Session, SessionManagerLayer, session::Error};

/// Who is logged in. A request without a login is answered with 401, one without Redis with 503.
struct AuthUser(String);

impl<S: Send + Sync> FromRequestParts<S> for AuthUser {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, StatusCode> {
        let session = Session::from_request_parts(parts, state).await;
        let session = session.map_err(|(status, _)| status)?;
        let user: Option<String> = session.get("user_id").await.map_err(status)?;
        user.map(AuthUser).ok_or(StatusCode::UNAUTHORIZED)
    }
}

fn status(error: Error) -> StatusCode {
    match Trouble::from(&error) {
        Trouble::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[derive(serde::Deserialize)]
struct Login {
    user: String,
    password: String,
}

async fn login(session: Session, Form(form): Form<Login>) -> Result<String, StatusCode> {
    if form.password != "secret" {
        return Err(StatusCode::UNAUTHORIZED);
    }
    // Another id, so that the one from before the login is worth nothing.
    session.cycle_id().await.map_err(status)?;
    session
        .insert("user_id", &form.user)
        .await
        .map_err(status)?;
    Ok(format!("welcome, {}", form.user))
}

async fn logout(session: Session) -> Result<&'static str, StatusCode> {
    session.flush().await.map_err(status)?;
    Ok("goodbye")
}

async fn everywhere(
    AuthUser(user): AuthUser,
    State(store): State<SessionStore>,
    session: Session,
) -> Result<&'static str, StatusCode> {
    let ended = store.log_out_everywhere(&user).await;
    ended.map_err(|error| status(error.into()))?;
    session.flush().await.map_err(status)?;
    Ok("goodbye, on all devices")
}

fn service(store: SessionStore) -> Router {
    let sessions = SessionManagerLayer::new(store.clone())
        .with_expiry(Expiry::OnInactivity(time::Duration::days(14)))
        // For this example only, which has no TLS.
        .with_secure(false);
    Router::new()
        .route("/", get(async |AuthUser(user): AuthUser| user))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/logout-everywhere", post(everywhere))
        .layer(sessions)
        .with_state(store)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let store = SessionStore::new(client.cache("example-sessions")).user_key("user_id");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let home = format!("http://{}", listener.local_addr()?);
    let serving = axum::serve(listener, service(store.clone())).into_future();
    tokio::spawn(serving);

    let browser = || reqwest::Client::builder().cookie_store(true).build();
    let (laptop, phone) = (browser()?, browser()?);
    let log_in = async |browser: &reqwest::Client, password: &str| {
        let form = format!("user=ada&password={password}");
        let form_type = "application/x-www-form-urlencoded";
        let login = browser.post(format!("{home}/login")).body(form);
        login.header("content-type", form_type).send().await
    };
    let page = async |browser: &reqwest::Client| browser.get(&home).send().await;

    assert_eq!(page(&laptop).await?.status(), 401);
    assert_eq!(log_in(&laptop, "wrong").await?.status(), 401);
    println!("{}", log_in(&laptop, "secret").await?.text().await?);
    log_in(&phone, "secret").await?;
    assert_eq!(page(&laptop).await?.text().await?, "ada");
    for session in store.sessions_of("ada").await? {
        println!("{} ends at {}", session.digest, session.expires);
    }
    assert_eq!(store.sessions_of("ada").await?.len(), 2);

    laptop.post(format!("{home}/logout")).send().await?;
    assert_eq!(page(&laptop).await?.status(), 401);
    assert_eq!(page(&phone).await?.text().await?, "ada");
    log_in(&laptop, "secret").await?;
    let ended = laptop.post(format!("{home}/logout-everywhere"));
    println!("{}", ended.send().await?.text().await?);
    assert_eq!(page(&phone).await?.status(), 401);
    assert_eq!(page(&laptop).await?.status(), 401);
    assert_eq!(store.stats().created, 3);
    println!("{:?}", store.stats());
    Ok(())
}
