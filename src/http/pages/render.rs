//! Rendering: the service is called once for all that wait, in the load of a page.
//!
//! Invariant: the request whose service is called always hears what came of it, whatever becomes of
//! the load: the page, a response that is its own, the service's own error or panic, or the future
//! itself if the load is given up. A request whose service is not called gets it back. Serving
//! hands a [`Job`] to `memoize`.

use std::error::Error as StdError;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderValue};
use http::request::Parts as RequestParts;
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri};
use tokio::sync::oneshot;
use tower_service::Service;

use super::body::{Gathered, PageBody, Panic, gather};
use super::conditional::entity_tag;
use super::freshness::{Verdict, judge};
use super::headers::{kept, make_unconditional};
use super::known::Known;
use super::origin::{Origin, OriginBody};
use super::page::{Content, Lives, Page, Stored};
use super::request::Asked;
use super::selection::Selection;
use super::settings::{Query, Settings};
use super::stats::Counts;
use super::tags::{CacheTags, MOST_TAGS};
use super::under_way::UnderWay;
use crate::cache::Loading;

/// A request, and the service that is ready for it.
pub(super) struct Work<S, B> {
    pub(super) service: S,
    pub(super) request: Request<B>,
}

/// What a request hears of its own render.
pub(super) enum Own<S, B, R>
where
    S: Origin<B, R>,
{
    /// Its service was not called.
    Back(Work<S, B>),
    Page(Box<Page>, Storing),
    /// A response that is its own: the page may not be stored, or the client reads it while it is
    /// gathered.
    Response(Response<PageBody<R>>),
    /// The service has failed.
    Failed(Result<Response<PageBody<R>>, S::Error>),
    Panicked(Panic),
    /// The load was given up, and the service has not answered yet.
    Unfinished(Pin<Box<S::Future>>),
}

/// Whether a page that was rendered is on its way to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storing {
    UnderWay,
    /// Redis is out.
    Nowhere,
}

/// The right to render a page, on its way to the load. If it is dropped unused, its request gets
/// back what it has given.
pub(super) struct Job<S, B, R>(Shared<S, B, R>)
where
    S: Origin<B, R>;

/// The other end of a job: its request may take back what it has given, until it is used.
pub(super) struct Claim<S, B, R>(Shared<S, B, R>)
where
    S: Origin<B, R>;

/// A job, its claim, and where its request hears of it.
type Offered<S, B, R> = (
    Job<S, B, R>,
    Claim<S, B, R>,
    oneshot::Receiver<Own<S, B, R>>,
);

type Shared<S, B, R> = Arc<Mutex<Option<Idle<S, B, R>>>>;

type Back<S, B, R> = oneshot::Sender<Own<S, B, R>>;

/// What a job holds until it is begun.
type Idle<S, B, R> = (Work<S, B>, Back<S, B, R>);

/// What a render needs to know.
#[derive(Clone)]
pub(super) struct How {
    pub(super) asked: Arc<Asked>,
    pub(super) settings: Arc<Settings>,
    pub(super) counts: Arc<Counts>,
    pub(super) known: Arc<Known>,
    pub(super) under_way: Arc<UnderWay>,
    /// That of the page.
    pub(super) key: Arc<str>,
}

/// Why there is no page. Its text gets to other processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotRendered {
    Error,
    Panic,
    Status(StatusCode),
    Body,
    /// Its request did not wait for it.
    Withdrawn,
}

impl<S, B, R> Job<S, B, R>
where
    S: Origin<B, R>,
{
    /// Returns a job, its claim, and where its request hears of it.
    pub(super) fn new(work: Work<S, B>) -> Offered<S, B, R> {
        let (back, own) = oneshot::channel();
        let idle = Arc::new(Mutex::new(Some((work, back))));
        (Self(idle.clone()), Claim(idle), own)
    }
}

impl<S, B, R> Claim<S, B, R>
where
    S: Origin<B, R>,
{
    /// Takes the work back. `None` if it was begun, or is on its way back.
    pub(super) fn withdrawn(self) -> Option<Work<S, B>> {
        taken(&self.0).map(|(work, _)| work)
    }
}

fn taken<T>(idle: &Mutex<Option<T>>) -> Option<T> {
    idle.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl<S, B, R> Drop for Job<S, B, R>
where
    S: Origin<B, R>,
{
    fn drop(&mut self) {
        if let Some((work, back)) = taken(&self.0) {
            // The request may have ended.
            let _ = back.send(Own::Back(work));
        }
    }
}

/// Renders a page. This is the loader.
pub(super) async fn render<S, B, R>(
    job: Job<S, B, R>,
    load: Loading<Stored>,
    how: How,
) -> Result<Stored, NotRendered>
where
    S: Origin<B, R>,
    R: OriginBody,
{
    let Some((work, back)) = taken(&job.0) else {
        // A load calls its loader once.
        return Err(NotRendered::Withdrawn);
    };
    let How {
        asked,
        settings,
        counts,
        known,
        under_way,
        key,
    } = &how;
    let _rendering = under_way.begin(key.clone());
    let answer = Answering::begin(work, back, asked, settings).await;
    let (mut response, back) = match answer {
        Answer::Response(response, back) => (response, back),
        Answer::Told(why) => {
            counts.failed.one_more();
            return Err(why);
        }
    };
    let now = SystemTime::now();
    let tags = CacheTags::taken(&mut response);
    let (status, headers) = (response.status(), response.headers());
    let selection = Selection::of(headers, &asked.headers);
    let verdict = judge(status, headers, asked.credentials, settings, now);
    let verdict = match (verdict, &selection) {
        (Verdict::Store(_), None) => Verdict::Unstorable("vary"),
        (Verdict::Store(_), _) if tags.len() > MOST_TAGS => {
            let named = tags.len();
            tracing::warn!(target: "hedgerow::pages", tags = named, "too many tags; not stored");
            Verdict::Unstorable("tags")
        }
        (verdict, _) => verdict,
    };
    // For every request, if it is not known for which.
    let selection = selection.unwrap_or_else(Selection::of_all);
    let why = match verdict {
        Verdict::Failure => {
            counts.failed.one_more();
            let _ = back.send(Own::Failed(Ok(response.map(PageBody::own))));
            return Err(NotRendered::Status(status));
        }
        Verdict::Unstorable(why) => {
            let _ = back.send(Own::Response(response.map(PageBody::own)));
            why
        }
        Verdict::Store(lives) => {
            match gathered(response, settings.body_limit, back, (lives, tags)).await {
                Ok((mut page, back)) => {
                    counts.rendered.one_more();
                    let now = SystemTime::now();
                    page.lives = page.lives.stored_at(now);
                    keep(&load, &page.lives, now);
                    load.tags(&page.tags);
                    if let Some(back) = back {
                        let storing = match load.fence() {
                            Some(_) => Storing::UnderWay,
                            None => Storing::Nowhere,
                        };
                        let _ = back.send(Own::Page(Box::new(page.clone()), storing));
                    }
                    let content = Content::Page(page);
                    return Ok(Stored { selection, content });
                }
                Err(Gathered::NotWhole(why)) => why,
                Err(_) => {
                    counts.failed.one_more();
                    return Err(NotRendered::Body);
                }
            }
        }
    };
    counts.unstorable.one_more();
    tracing::debug!(target: "hedgerow::pages", why, "not to be stored");
    // A marker is stored nowhere while Redis is out.
    if load.fence().is_none() {
        known.note_unstored(key, settings.marker_ttl);
    }
    match settings.marker_ttl.is_zero() {
        true => load.no_store(),
        false => {
            load.ttl(settings.marker_ttl.max(SHORTEST));
            load.keep_stale(MARKED_STALE);
        }
    }
    let content = Content::Marker;
    Ok(Stored { selection, content })
}

/// Says how long a page is kept that is whole by `now`: for what is left of its freshness and of
/// its windows. Its body may have taken longer than both.
fn keep(load: &Loading<Stored>, lives: &Lives, now: SystemTime) {
    let (fresh, window) = (lives.left(now), lives.window());
    match fresh.is_zero() && window.is_zero() {
        true => load.no_store(),
        false => {
            load.ttl(fresh.max(SHORTEST));
            load.keep_stale(window);
        }
    }
}

/// What the service has answered.
enum Answer<S, B, R>
where
    S: Origin<B, R>,
{
    Response(Response<R>, Back<S, B, R>),
    /// None, and its request has heard why.
    Told(NotRendered),
}

/// The future of a service, and where its request hears of it.
type Called<S, B, R> = (Pin<Box<<S as Service<Request<B>>>::Future>>, Back<S, B, R>);

/// A service that is called. If it is dropped before it has answered, its request gets its future.
struct Answering<S, B, R>(Option<Called<S, B, R>>)
where
    S: Origin<B, R>;

impl<S, B, R> Answering<S, B, R>
where
    S: Origin<B, R>,
{
    /// Calls the service for the whole page.
    async fn begin(
        work: Work<S, B>,
        back: Back<S, B, R>,
        asked: &Asked,
        settings: &Settings,
    ) -> Answer<S, B, R> {
        let Work {
            mut service,
            request,
        } = work;
        // The hook is the user's code, too.
        let call = AssertUnwindSafe(|| {
            let (mut parts, body) = request.into_parts();
            make_whole(&mut parts, asked, settings);
            if let Some(on_render) = &settings.on_render {
                on_render(&mut parts);
            }
            service.call(Request::from_parts(parts, body))
        });
        let called = std::panic::catch_unwind(call);
        let future = match called {
            Ok(future) => Box::pin(future),
            Err(panic) => {
                let _ = back.send(Own::Panicked(panic));
                return Answer::Told(NotRendered::Panic);
            }
        };
        Self(Some((future, back))).await
    }
}

impl<S, B, R> Future for Answering<S, B, R>
where
    S: Origin<B, R>,
{
    type Output = Answer<S, B, R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some((future, _)) = &mut self.0 else {
            return Poll::Ready(Answer::Told(NotRendered::Error));
        };
        let polled = AssertUnwindSafe(|| future.as_mut().poll(cx));
        let polled = std::panic::catch_unwind(polled);
        let answer = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(answer)) => Ok(answer),
            Err(panic) => Err(panic),
        };
        // It is not polled again.
        let Some((_, back)) = self.0.take() else {
            return Poll::Ready(Answer::Told(NotRendered::Error));
        };
        Poll::Ready(match answer {
            Ok(Ok(response)) => Answer::Response(response, back),
            Ok(Err(error)) => {
                let _ = back.send(Own::Failed(Err(error)));
                Answer::Told(NotRendered::Error)
            }
            Err(panic) => {
                let _ = back.send(Own::Panicked(panic));
                Answer::Told(NotRendered::Panic)
            }
        })
    }
}

impl<S, B, R> Drop for Answering<S, B, R>
where
    S: Origin<B, R>,
{
    fn drop(&mut self) {
        if let Some((future, back)) = self.0.take() {
            let _ = back.send(Own::Unfinished(future));
        }
    }
}

/// Gathers a page. Returns where its request is to hear of it, unless it reads the body already.
async fn gathered<S, B, R>(
    response: Response<R>,
    limit: usize,
    back: Back<S, B, R>,
    (lives, tags): (Lives, Vec<String>),
) -> Result<(Page, Option<Back<S, B, R>>), Gathered>
where
    S: Origin<B, R>,
    R: OriginBody,
{
    let status = response.status();
    let mut headers = kept(response.headers());
    let (parts, body) = response.into_parts();
    let mut waits = Some((parts, back));
    let hand_over = |body| {
        if let Some((parts, back)) = waits.take() {
            let _ = back.send(Own::Response(Response::from_parts(parts, body)));
        }
    };
    let body = match gather(body, limit, hand_over).await {
        Gathered::Whole(body) => body,
        other => return Err(other),
    };
    // Of a response to `GET`, this says how long its body was to be.
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|it| it.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length != body.len()) {
        if let Some((parts, back)) = waits {
            let response = Response::from_parts(parts, PageBody::whole(body));
            let _ = back.send(Own::Response(response));
        }
        return Err(Gathered::NotWhole("incomplete"));
    }
    if !headers.contains_key(header::DATE) {
        let rendered = SystemTime::UNIX_EPOCH + Duration::from_millis(lives.rendered);
        let date = httpdate::fmt_http_date(rendered);
        headers.insert(
            header::DATE,
            HeaderValue::from_str(&date).expect("a date is a text"),
        );
    }
    // How old it is is told with each answer.
    headers.remove(header::AGE);
    if status == StatusCode::OK && !headers.contains_key(header::ETAG) {
        headers.insert(header::ETAG, entity_tag(&body));
    }
    let page = Page {
        status,
        headers,
        body,
        lives,
        tags,
    };
    Ok((page, waits.map(|(_, back)| back)))
}

/// Makes a request one for the whole page, as all others will be given it.
fn make_whole(parts: &mut RequestParts, asked: &Asked, settings: &Settings) {
    make_unconditional(&mut parts.headers);
    if let Query::Whole = settings.query {
        return;
    }
    let target = match &asked.place.query {
        Some(query) => format!("{}?{query}", asked.place.path),
        None => asked.place.path.clone(),
    };
    let mut uri = parts.uri.clone().into_parts();
    uri.path_and_query = PathAndQuery::try_from(target).ok();
    // A part of what was a target is one.
    if let Ok(uri) = Uri::from_parts(uri) {
        parts.uri = uri;
    }
}

impl fmt::Display for NotRendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error => f.write_str("the service failed"),
            Self::Panic => f.write_str("the service panicked"),
            Self::Status(status) => write!(f, "the service answered {}", status.as_u16()),
            Self::Body => f.write_str("the body of the page failed"),
            Self::Withdrawn => f.write_str("the request was rendered beside the cache"),
        }
    }
}

impl StdError for NotRendered {}

/// The TTL of a page that is served stale only.
const SHORTEST: Duration = Duration::from_millis(1);

/// How long a marker is there beyond its TTL. The first request of that time looks whether the page
/// may be stored by now, and no other one waits for it.
const MARKED_STALE: Duration = Duration::from_secs(60);
