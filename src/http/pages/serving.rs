//! `Serving`: one request for a page, and the answers that it may be given.
//!
//! Invariant: each answer is counted once, and says in `Cache-Status` how it came about. Nothing is
//! decided here. Serving makes one for each request.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};

use super::body::PageBody;
use super::conditional::{has_already, of_not_modified};
use super::origin::Origin;
use super::page::{Lives, Page, millis};
use super::page_cache::PageCache;
use super::passing::called;
use super::render::{Own, Storing, Work};
use super::request::{Asked, Want};
use super::status::{Forward, Status};
use super::tags::CacheTags;

/// One request for a page.
pub(super) struct Serving {
    pub(super) pages: PageCache,
    pub(super) asked: Arc<Asked>,
    /// The tags that are known before the page is.
    pub(super) tags: Vec<String>,
    began: SystemTime,
}

/// How a page has come to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    /// Its own render has made it.
    Rendered(Storing),
    /// The render of another request has, meanwhile.
    Collapsed,
    Fresh,
    /// It was stale: by its age, or because it was purged softly.
    Stale,
}

impl Serving {
    pub(super) fn new<B>(
        pages: PageCache,
        asked: Asked,
        request: &Request<B>,
        began: SystemTime,
    ) -> Self {
        let mut tags = asked.tags(&pages.settings);
        if let Some(by) = &pages.settings.tags_by {
            tags.extend(by(&head(request)));
        }
        Self {
            asked: Arc::new(asked),
            pages,
            tags,
            began,
        }
    }

    /// Whether the page is newer than the request: nothing could be fresher.
    pub(super) fn is_newer(&self, lives: &Lives) -> bool {
        lives.rendered > millis(self.began)
    }

    /// Answers with a stored page, or with one that was rendered for all that waited.
    pub(super) async fn with_page<R>(
        &self,
        page: &Page,
        came: Came,
        forward: Forward,
        key: &str,
    ) -> Response<PageBody<R>> {
        let (counts, now) = (&self.pages.counts, SystemTime::now());
        let status = match came {
            Came::Rendered(storing) => {
                counts.misses.one_more();
                let is_stored = self.is_stored(key, storing).await;
                Status::Rendered(forward, is_stored.then_some(page.lives))
            }
            Came::Collapsed => {
                counts.collapsed.one_more();
                Status::Collapsed(forward, page.lives)
            }
            Came::Fresh => {
                counts.hits.one_more();
                Status::Hit(page.lives)
            }
            Came::Stale => {
                counts.hits.one_more();
                counts.stale.one_more();
                Status::Hit(page.lives.over(now))
            }
        };
        self.response(page, status, key, now)
    }

    /// Whether the page is there that was just rendered. Its commit may have been refused: because
    /// of a purge, a tag that nobody knows yet, or a server that is full. So it is looked at, if
    /// anybody is told of it.
    async fn is_stored(&self, key: &str, storing: Storing) -> bool {
        if storing == Storing::Nowhere || self.pages.settings.status_name.is_none() {
            return false;
        }
        let looked = self.pages.cache.contains(key);
        let looked = looked.deadline(LONGEST_LOOK).fail_fast();
        Box::pin(looked.into_future()).await.unwrap_or(false)
    }

    /// Answers with what the render of this request came to.
    pub(super) async fn with_own<S, B, R>(
        &self,
        own: Own<S, B, R>,
        forward: Forward,
        key: &str,
    ) -> Result<Response<PageBody<R>>, S::Error>
    where
        S: Origin<B, R>,
    {
        let status = Status::Rendered(forward, None);
        self.pages.counts.misses.one_more();
        let mut response = match own {
            Own::Back(work) => {
                debug_assert!(false, "a render that was not begun came to nothing");
                return called(work, &self.pages, status, Some(key)).await;
            }
            Own::Page(page, _) => {
                return Ok(self.response(&page, status, key, SystemTime::now()));
            }
            Own::Response(response) => response,
            Own::Failed(failed) => failed?,
            Own::Panicked(panic) => resume_unwind(panic),
            Own::Unfinished(future) => {
                let mut response = future.await?.map(PageBody::own);
                CacheTags::taken(&mut response);
                response
            }
        };
        // The service was asked for the whole page.
        if response.status() == StatusCode::OK
            && has_already(&self.asked.headers, response.headers())
        {
            self.pages.counts.not_modified.one_more();
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.headers_mut() = of_not_modified(response.headers());
            *response.body_mut() = PageBody::whole(Bytes::new());
        }
        self.tell(status, &mut response, key);
        Ok(response)
    }

    /// Has the request rendered for itself.
    pub(super) async fn beside<S, B, R>(
        &self,
        work: Work<S, B>,
        (why, detail): (Forward, &'static str),
        key: &str,
    ) -> Result<Response<PageBody<R>>, S::Error>
    where
        S: Origin<B, R>,
    {
        self.pages.counts.beside.one_more();
        called(work, &self.pages, Status::Beside(why, detail), Some(key)).await
    }

    /// Answers that there is no stored page, to a client that wants no other.
    pub(super) fn not_here<R>(&self, key: &str) -> Response<PageBody<R>> {
        self.pages.counts.beside.one_more();
        let mut response = empty(StatusCode::GATEWAY_TIMEOUT);
        self.tell(Status::NotHere, &mut response, key);
        response
    }

    /// Answers a request whose render has been lost with the runtime that it ran on.
    pub(super) fn lost<R>(&self) -> Response<PageBody<R>> {
        tracing::warn!(target: "hedgerow::pages", "a render was lost with its runtime");
        empty(StatusCode::SERVICE_UNAVAILABLE)
    }

    /// Makes the answer of a page, as this request wants it.
    pub(super) fn response<R>(
        &self,
        page: &Page,
        status: Status,
        key: &str,
        now: SystemTime,
    ) -> Response<PageBody<R>> {
        let not_modified =
            page.status == StatusCode::OK && has_already(&self.asked.headers, &page.headers);
        let mut response = match not_modified {
            true => {
                self.pages.counts.not_modified.one_more();
                let mut response = empty(StatusCode::NOT_MODIFIED);
                *response.headers_mut() = of_not_modified(&page.headers);
                response
            }
            false => {
                let mut response = Response::new(PageBody::whole(page.body.clone()));
                *response.status_mut() = page.status;
                *response.headers_mut() = page.headers.clone();
                if self.asked.want != Want::Page {
                    self.make_head(page, &mut response);
                }
                response
            }
        };
        let age = page.lives.age(now).as_secs();
        // What was rendered for this request has no age, unless the service got it from elsewhere.
        if age > 0 || !matches!(status, Status::Rendered(..)) {
            response
                .headers_mut()
                .insert(header::AGE, HeaderValue::from(age));
        }
        self.tell(status, &mut response, key);
        response
    }

    /// Takes the body away, if this is a request for a head.
    fn make_head<R>(&self, page: &Page, response: &mut Response<PageBody<R>>) {
        if self.asked.method != Method::HEAD {
            return;
        }
        *response.body_mut() = PageBody::whole(Bytes::new());
        // Such a response has no body, so it must not say how long that is.
        if page.status == StatusCode::NO_CONTENT {
            return;
        }
        let length = HeaderValue::from(page.body.len());
        let headers = response.headers_mut();
        headers.entry(header::CONTENT_LENGTH).or_insert(length);
    }

    fn tell<R>(&self, status: Status, response: &mut Response<PageBody<R>>, key: &str) {
        let settings = &self.pages.settings;
        let now = SystemTime::now();
        status.tell(response.headers_mut(), settings, Some(key), now);
    }
}

/// A copy of the head of a request.
fn head<B>(request: &Request<B>) -> Parts {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.version = request.version();
    parts.headers = request.headers().clone();
    parts.extensions = request.extensions().clone();
    parts
}

fn empty<R>(status: StatusCode) -> Response<PageBody<R>> {
    let mut response = Response::new(PageBody::whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// How long a request waits to be told that its page was stored.
const LONGEST_LOOK: Duration = Duration::from_millis(100);
