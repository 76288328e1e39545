//! Serving: how one request comes to its answer.
//!
//! Invariant: a request is answered with a stored page, with what its own render came to, or by its
//! service, in this order. Whatever is wrong with the cache leads to the last one. The service of
//! the layer calls this.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tokio::sync::oneshot;
use tower_service::Service;

use super::body::{BoxError, PageBody};
use super::conditional::{has_already, of_not_modified};
use super::key::url_tag;
use super::known::Window;
use super::page::{Content, Lives, Page, Stored, millis};
use super::page_cache::PageCache;
use super::render::{How, Job, Own, Work, render};
use super::request::{Asked, Want, place};
use super::status::{Forward, Status};
use super::tags::CacheTags;
use crate::error::{Error, ErrorKind};

/// Answers a request. `service` is ready.
pub(super) async fn answer<S, B, R>(
    pages: PageCache,
    service: S,
    request: Request<B>,
) -> Result<Response<PageBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let work = Work { service, request };
    match Asked::of(&work.request, &pages.settings) {
        Ok(asked) => {
            let now = SystemTime::now();
            // In a box, so that what passes is small.
            Box::pin(Serving::new(pages, asked, &work.request, now).run(work)).await
        }
        Err((why, detail)) => passed(&pages, work, Status::Beside(why, detail)).await,
    }
}

/// Lets a request pass. A method that may change the page purges it, if it succeeds.
async fn passed<S, B, R>(
    pages: &PageCache,
    work: Work<S, B>,
    status: Status,
) -> Result<Response<PageBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body<Data = Bytes>,
{
    pages.counts.passed.one_more();
    let changed = match is_safe(work.request.method()) {
        true => None,
        false => place(&work.request, &pages.settings),
    };
    let response = called(work, pages, status, None).await?;
    let succeeded = response.status().is_success() || response.status().is_redirection();
    if let Some(place) = changed.filter(|_| succeeded) {
        let purge = pages.cache.invalidate_tags([url_tag(&place)]);
        // If it takes longer, the client goes on with it in the background.
        if let Err(error) = purge.deadline(LONGEST_PURGE).await {
            tracing::warn!(target: "hedgerow::pages", %error, "not purged");
        }
    }
    Ok(response)
}

/// Calls the service for one request alone.
async fn called<S, B, R>(
    work: Work<S, B>,
    pages: &PageCache,
    status: Status,
    key: Option<&str>,
) -> Result<Response<PageBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body<Data = Bytes>,
{
    let Work {
        mut service,
        request,
    } = work;
    let mut response = service.call(request).await?.map(PageBody::own);
    CacheTags::taken(&mut response);
    let settings = &pages.settings;
    status.tell(response.headers_mut(), settings, key, SystemTime::now());
    Ok(response)
}

/// One request for a page.
struct Serving {
    pages: PageCache,
    asked: Arc<Asked>,
    /// The tags that are known before the page is.
    tags: Vec<String>,
    began: SystemTime,
}

/// How stale a page an attempt may be given.
#[derive(Debug, Clone, Copy)]
enum Serves {
    /// As stale as it is kept: it is looked at afterwards.
    Kept,
    /// Stale for no longer than this, and only if the render fails.
    IfError(Duration),
}

/// What an attempt at one key came to.
enum Tried<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    /// The request reads a response of its own already.
    Own(Response<PageBody<R>>),
    Ended(Result<Arc<Stored>, Error>, Hears<S, B, R>),
}

/// What a request hears of its own render.
#[expect(
    clippy::large_enum_variant,
    reason = "one for each request, and only while it waits"
)]
enum Hears<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    Yet(oneshot::Receiver<Own<S, B, R>>),
    Now(Own<S, B, R>),
    /// Its runtime has ended.
    Nothing,
}

/// What a request does that cannot be given what was found.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// It looks for the variant that is for it.
    Variant,
    /// It wants a fresh page, or one that has been stale for no longer than this if there is none.
    Fresh(Duration),
    /// It is rendered, and why.
    Beside(Forward, &'static str),
}

/// The page that was found, if it may be served because its render has failed.
fn allowed_if_error(
    found: &Result<Arc<Stored>, Error>,
    next: Next,
    now: SystemTime,
) -> Option<&Page> {
    match (&found.as_ref().ok()?.content, next) {
        (Content::Page(page), Next::Fresh(window)) if page.lives.stale_for(now) <= window => {
            Some(page)
        }
        _ => None,
    }
}

impl Serving {
    fn new<B>(pages: PageCache, asked: Asked, request: &Request<B>, began: SystemTime) -> Self {
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

    async fn run<S, B, R>(self, mut work: Work<S, B>) -> Result<Response<PageBody<R>>, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Body + Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        if self.asked.want != Want::Page {
            return self.looked_up(work).await;
        }
        let mut key = self.asked.key.first().to_owned();
        let mut slots: Option<std::vec::IntoIter<usize>> = None;
        let mut forward = Forward::UriMiss;
        let mut serves = Serves::Kept;
        // At most two attempts for the first variant and for each slot.
        loop {
            let (found, own) = match self.attempt(&key, work, serves).await {
                Tried::Own(response) => {
                    let own = Own::<S, B, R>::Response(response);
                    return self.with_own(own, forward, &key).await;
                }
                Tried::Ended(found, own) => (found, own),
            };
            let now = SystemTime::now();
            let next = match &found {
                Ok(stored) if !stored.selection.selects(&self.asked.headers) => Next::Variant,
                Ok(stored) => match &stored.content {
                    Content::Page(page) => match self.why_not(&page.lives, serves, now) {
                        None => return Ok(self.with_page(page, &own, forward, &key, now)),
                        Some(next) => next,
                    },
                    Content::Marker => Next::Beside(forward, "not to be stored"),
                },
                Err(error) => {
                    tell(error);
                    Next::Beside(forward, "not from the cache")
                }
            };
            // What is there is of no use. Its own render may be under way, or have ended.
            let own = own.heard().await;
            if let Some(Own::Failed(_) | Own::Panicked(_)) = own
                && let Some(page) = allowed_if_error(&found, next, now)
            {
                let none = Hears::<S, B, R>::Nothing;
                return Ok(self.with_page(page, &none, forward, &key, now));
            }
            work = match own {
                Some(Own::Back(work)) => work,
                Some(own) => return self.with_own(own, forward, &key).await,
                None => return Ok(empty(StatusCode::SERVICE_UNAVAILABLE)),
            };
            (forward, serves) = match next {
                Next::Variant => {
                    let slot = slots.get_or_insert_with(|| self.slots(&found)).next();
                    let Some(slot) = slot else {
                        let why = (Forward::VaryMiss, "too many variants");
                        return self.beside(work, why, &key).await;
                    };
                    key = self.asked.key.variant(slot);
                    (Forward::VaryMiss, Serves::Kept)
                }
                Next::Fresh(if_error) => (Forward::Stale, Serves::IfError(if_error)),
                Next::Beside(why, detail) => return self.beside(work, (why, detail), &key).await,
            };
        }
    }

    /// Reads the page at `key`, or has it rendered.
    async fn attempt<S, B, R>(&self, key: &str, work: Work<S, B>, serves: Serves) -> Tried<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Send + 'static,
        B: Body + Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let pages = &self.pages;
        let facts = pages.known.of(key);
        let (job, mut own) = Job::new(work);
        let how = How {
            asked: self.asked.clone(),
            settings: pages.settings.clone(),
            counts: pages.counts.clone(),
        };
        let call = pages
            .cache
            .memoize_with(key, PLANNED_TTL, move |load| render(job, load, how))
            .tags(self.tags.iter().chain(&*facts.tags))
            .keep_stale(Duration::ZERO);
        let call = match (serves, facts.window) {
            (Serves::Kept, Window::Unknown) => {
                call.stale(LONGEST_WINDOW).stale_if_error(LONGEST_WINDOW)
            }
            (Serves::Kept, Window::None) => call,
            (Serves::IfError(window), _) => call.stale_if_error(window),
        };
        let mut call = call.into_future();
        let first = tokio::select! {
            biased;
            own = &mut own => Err(own),
            found = &mut call => Ok(found),
        };
        let (found, own) = match first {
            Ok(found) => (found, Hears::Yet(own)),
            // Whatever becomes of the load, this is the answer.
            Err(Ok(Own::Response(response))) => return Tried::Own(response),
            Err(own) => (call.await, own.map_or(Hears::Nothing, Hears::Now)),
        };
        if let Ok(stored) = &found {
            match &stored.content {
                Content::Page(page) => {
                    let window = match page.lives.window().is_zero() {
                        true => Window::None,
                        false => Window::Unknown,
                    };
                    pages.known.note(key, &page.tags, window);
                }
                // It is kept stale, too.
                Content::Marker => pages.known.note(key, &facts.tags, Window::Unknown),
            }
        }
        Tried::Ended(found, own)
    }

    /// Says why the request is not given a page that lives so. `None` if it is.
    fn why_not(&self, lives: &Lives, serves: Serves, now: SystemTime) -> Option<Next> {
        // Newer than the request: nothing could be fresher.
        if self.is_newer(lives) {
            return None;
        }
        if !self.asked.accepts(lives, now) {
            return Some(Next::Beside(Forward::Request, "not accepted"));
        }
        match serves {
            Serves::IfError(_) => None,
            Serves::Kept if lives.stale_for(now) <= lives.stale_while_revalidate => None,
            Serves::Kept => Some(Next::Fresh(lives.stale_if_error)),
        }
    }

    fn is_newer(&self, lives: &Lives) -> bool {
        lives.rendered > millis(self.began)
    }

    /// The slots in which the variant for this request may be. `found` is another one.
    fn slots(&self, found: &Result<Arc<Stored>, Error>) -> std::vec::IntoIter<usize> {
        let slots: Vec<usize> = match found {
            Ok(stored) => {
                let selection = stored.selection.for_request(&self.asked.headers);
                selection.slots(self.pages.settings.variants).collect()
            }
            Err(_) => Vec::new(),
        };
        slots.into_iter()
    }

    /// Looks for a stored page, and has nothing rendered.
    async fn looked_up<S, B, R>(self, work: Work<S, B>) -> Result<Response<PageBody<R>>, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body<Data = Bytes>,
    {
        let mut key = self.asked.key.first().to_owned();
        let mut slots: Option<std::vec::IntoIter<usize>> = None;
        loop {
            let found = self.pages.cache.get::<Stored>(&key).await;
            let Some(stored) = found.inspect_err(tell).unwrap_or_default() else {
                break;
            };
            let now = SystemTime::now();
            if !stored.selection.selects(&self.asked.headers) {
                let found = Ok(stored);
                match slots.get_or_insert_with(|| self.slots(&found)).next() {
                    Some(slot) => key = self.asked.key.variant(slot),
                    None => break,
                }
                continue;
            }
            match &stored.content {
                Content::Page(page) if self.asked.accepts(&page.lives, now) => {
                    self.pages.counts.hits.one_more();
                    return Ok(self.response(page, Status::Hit(page.lives), &key, now));
                }
                _ => break,
            }
        }
        if self.asked.want == Want::OnlyStored {
            self.pages.counts.beside.one_more();
            let mut response = empty(StatusCode::GATEWAY_TIMEOUT);
            self.tell(Status::NotHere, &mut response, &key);
            return Ok(response);
        }
        self.beside(work, (Forward::UriMiss, "head"), &key).await
    }

    /// Answers with a stored page, or with one that was rendered for all that waited.
    fn with_page<S, B, R>(
        &self,
        page: &Page,
        own: &Hears<S, B, R>,
        forward: Forward,
        key: &str,
        now: SystemTime,
    ) -> Response<PageBody<R>>
    where
        S: Service<Request<B>, Response = Response<R>>,
    {
        let counts = &self.pages.counts;
        let status = if let Hears::Now(Own::Page(_)) = own {
            counts.misses.one_more();
            let is_stored = page.tags.iter().all(|tag| self.is_known(tag));
            Status::Rendered(forward, is_stored.then_some(page.lives))
        } else if self.is_newer(&page.lives) {
            counts.collapsed.one_more();
            Status::Collapsed(forward, page.lives)
        } else {
            counts.hits.one_more();
            if !page.lives.stale_for(now).is_zero() {
                counts.stale.one_more();
            }
            Status::Hit(page.lives)
        };
        self.response(page, status, key, now)
    }

    /// Whether the tag was declared before the page was rendered. A page with another one may not
    /// have been stored.
    fn is_known(&self, tag: &String) -> bool {
        self.tags.contains(tag)
    }

    /// Answers with what the render of this request came to.
    async fn with_own<S, B, R>(
        &self,
        own: Own<S, B, R>,
        forward: Forward,
        key: &str,
    ) -> Result<Response<PageBody<R>>, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body<Data = Bytes>,
    {
        let status = Status::Rendered(forward, None);
        self.pages.counts.misses.one_more();
        let mut response = match own {
            Own::Back(work) => {
                debug_assert!(false, "a render that was not begun came to nothing");
                return called(work, &self.pages, status, Some(key)).await;
            }
            Own::Page(page) => return Ok(self.response(&page, status, key, SystemTime::now())),
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
    async fn beside<S, B, R>(
        &self,
        work: Work<S, B>,
        (why, detail): (Forward, &'static str),
        key: &str,
    ) -> Result<Response<PageBody<R>>, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body<Data = Bytes>,
    {
        self.pages.counts.beside.one_more();
        called(work, &self.pages, Status::Beside(why, detail), Some(key)).await
    }

    /// Makes the answer of a page, as this request wants it.
    fn response<R>(
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
        let length = HeaderValue::from(page.body.len());
        let headers = response.headers_mut();
        headers.entry(header::CONTENT_LENGTH).or_insert(length);
    }

    fn tell<R>(&self, status: Status, response: &mut Response<PageBody<R>>, key: &str) {
        let settings = &self.pages.settings;
        status.tell(
            response.headers_mut(),
            settings,
            Some(key),
            SystemTime::now(),
        );
    }
}

impl<S, B, R> Hears<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    /// Waits until it is known what became of the render: it was not begun, or has ended.
    async fn heard(self) -> Option<Own<S, B, R>> {
        match self {
            Self::Yet(own) => own.await.ok(),
            Self::Now(own) => Some(own),
            Self::Nothing => None,
        }
    }
}

/// Tells of an error that keeps a page from being had from the cache.
fn tell(error: &Error) {
    match error.kind() {
        // Its request has heard what happened.
        ErrorKind::Loader | ErrorKind::LoaderPanicked => {}
        ErrorKind::InvalidInput | ErrorKind::Encode | ErrorKind::TooLarge => {
            tracing::warn!(target: "hedgerow::pages", %error, "a page cannot be stored");
        }
        _ => tracing::debug!(target: "hedgerow::pages", %error, "beside the cache"),
    }
}

/// Whether a method changes nothing.
fn is_safe(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
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

/// For how long a page is stored, before its render says it. Tags are made to live so long.
const PLANNED_TTL: Duration = Duration::from_secs(600);

/// As long as a page may say that it is served stale, or longer.
const LONGEST_WINDOW: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How long a request that has changed a page waits for its purge.
const LONGEST_PURGE: Duration = Duration::from_millis(100);
