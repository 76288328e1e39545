//! A visitor of the shop: a browser without a window.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use reqwest::redirect::Policy;

/// Keeps cookies, and asks the two instances in turn. Clones share their cookies.
#[derive(Clone)]
pub struct Visitor {
    http: reqwest::Client,
    addresses: [String; 2],
    turn: Arc<AtomicUsize>,
}

/// An answer.
pub struct Page {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Visitor {
    pub fn new(addresses: [String; 2]) -> Self {
        let http = reqwest::Client::builder()
            .cookie_store(true)
            .redirect(Policy::none())
            .build();
        Self {
            http: http.expect("a client"),
            addresses,
            turn: Arc::default(),
        }
    }

    /// Asks the instance whose turn it is.
    pub async fn get(&self, path: &str) -> Page {
        sent(self.http.get(self.url(path))).await
    }

    /// Asks the instance with this index.
    pub async fn get_from(&self, instance: usize, path: &str) -> Page {
        sent(self.http.get(format!("{}{path}", self.addresses[instance]))).await
    }

    /// As if forwarded by a proxy for another address.
    pub async fn get_for(&self, address: &str, path: &str) -> Page {
        let request = self.http.get(self.url(path));
        sent(request.header("x-forwarded-for", address)).await
    }

    /// Sends a cookie by hand, whatever the answers say of it.
    pub async fn get_with(&self, cookie: &str, path: &str) -> Page {
        sent(self.http.get(self.url(path)).header(COOKIE, cookie)).await
    }

    pub async fn post(&self, path: &str, form: &str) -> Page {
        let request = self.http.post(self.url(path));
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        sent(request.body(form.to_owned())).await
    }

    /// As if forwarded by a proxy for another address.
    pub async fn post_for(&self, address: &str, path: &str, form: &str) -> Page {
        let request = self
            .http
            .post(self.url(path))
            .header("x-forwarded-for", address);
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        sent(request.body(form.to_owned())).await
    }

    pub async fn post_from(&self, origin: &str, path: &str, form: &str) -> Page {
        let request = self.http.post(self.url(path)).header("origin", origin);
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        sent(request.body(form.to_owned())).await
    }

    fn url(&self, path: &str) -> String {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        format!("{}{path}", self.addresses[turn % 2])
    }
}

async fn sent(request: reqwest::RequestBuilder) -> Page {
    let response = request.send().await.expect("an answer");
    Page {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await.expect("a whole page"),
    }
}

impl Page {
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |it| it.to_str().expect("text"))
    }

    /// The cookie that it sets, as a browser sends it back.
    pub fn cookie(&self) -> String {
        let cookie = self.header(SET_COOKIE.as_str());
        cookie.split(';').next().unwrap_or_default().to_owned()
    }

    /// Whether it sends the visitor to the login page.
    pub fn asks_for_login(&self) -> bool {
        self.status == 303 && self.header("location").starts_with("/login")
    }

    /// Whether it was answered from a page that was stored before.
    pub fn is_hit(&self) -> bool {
        self.header("cache-status").contains("; hit")
    }

    /// The number in an attribute of the page, such as `data-cents`.
    pub fn number(&self, attribute: &str) -> i64 {
        let digits = self.between(&format!("{attribute}=\""), "\"");
        digits
            .parse()
            .unwrap_or_else(|_| panic!("{attribute} in {}", self.text))
    }

    /// The value of a hidden field.
    pub fn field(&self, name: &str) -> &str {
        self.between(&format!("name=\"{name}\" value=\""), "\"")
    }

    /// The first text between two others, or nothing.
    pub fn between(&self, before: &str, after: &str) -> &str {
        let rest = self.text.split_once(before).map_or("", |(_, rest)| rest);
        rest.split_once(after).map_or("", |(text, _)| text)
    }
}
