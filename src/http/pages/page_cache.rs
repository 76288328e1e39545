//! `PageCache`: the layer, as users make it.
//!
//! Invariant: clones share what is stored, what is counted and what is known of pages. Users make
//! one and keep it; the service is in `service.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::request::Parts;

use super::known::Known;
use super::settings::{Cookies, Directives, Query, Settings};
use super::stats::{Counts, PageStats};
use super::under_way::UnderWay;
use crate::cache::{Cache, Outage};

/// A layer that keeps the pages of a service in Redis, and renders each of them once.
///
/// It answers `GET` and `HEAD` with a stored page while the page is fresh, as RFC 9111 says for a
/// shared cache. Whether a page may be stored, and for how long, is said by the `Cache-Control` of
/// the response. A page without it is not stored, unless there is a
/// [`default_ttl`](Self::default_ttl). However many requests miss a page, in however many
/// processes, it is rendered once, and all get it. The render runs in a task of its own and goes on
/// if the client leaves.
///
/// ```no_run
/// # use std::time::Duration;
/// use axum::response::IntoResponse;
/// use axum::{Extension, Router, routing::get};
/// use hedgerow::http::{CacheTags, PageCache};
///
/// async fn product() -> impl IntoResponse {
///     let cached = [("cache-control", "public, s-maxage=60, stale-while-revalidate=30")];
///     (cached, Extension(CacheTags::new(["product:42"])), "a page")
/// }
///
/// # async fn example(client: hedgerow::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let pages = PageCache::new(client.cache("pages")).hosts(["shop.example"]);
/// let app: Router = Router::new().route("/products/42", get(product)).layer(pages.clone());
/// // After the product has changed:
/// pages.purge_tags(["product:42"]).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Where it goes
/// Outside of all that makes the page, and outside of routers that shorten the path: a nested
/// router of axum takes its prefix off the path, so pages of two nested routers would have one key.
/// A `RateLimitLayer` goes outside of this one, so that it counts requests that get a stored page.
/// A layer that compresses goes outside of this one, where it is asked for each answer, or inside,
/// where it says `Vary: Accept-Encoding` and each encoding is a page of its own.
///
/// The service is called in another task than that of the connection. Task-locals do not get there;
/// the extensions of the request do.
///
/// # What is never stored
/// - Answers to other methods than `GET`; requests with a body, with `Range`, `Upgrade`, `If-Match`
///   or `If-Unmodified-Since`; requests whose host is not among the [`hosts`](Self::hosts), is
///   given twice, or in two ways that differ. They pass: the service is called, and its answer is
///   not looked at.
/// - Responses with `Set-Cookie`, `Vary: *`, trailers, `no-store`, `private` or `no-cache`, or a
///   body above the [`body_limit`](Self::body_limit); errors of the service; the statuses 206, 304,
///   and 5xx except 501.
/// - Responses to requests with `Authorization` or a [cookie](Self::login_cookies), unless they say
///   `public` or `s-maxage`.
///
/// A page that may not be stored leaves a marker for a [while](Self::marker_ttl), so that requests
/// for it are not made to wait for each other. Where none can be left, the process remembers it.
///
/// # Changes
/// A request with another method than `GET`, `HEAD`, `OPTIONS` or `TRACE` purges the page at its
/// URL, unless it is answered by 1xx or 4xx. So does one that ends without an answer. Its answer
/// waits for the purge for 100 ms at most, and not while Redis is known to be out: the purge is
/// delivered when Redis is back. The client keeps up to 10,000 tags for that. A purge that finds no
/// room among them is [lost](super::PageStats::lost_purges), and one that Redis has refused for
/// about five minutes, for missing rights or credentials, is
/// [given up](crate::cache::Undelivered::given_up): the answer stays as it is, and the page may be
/// served until its time is over, or until something else purges it.
///
/// # Without Redis
/// Pages are rendered, once for each process and key and at most
/// [64](crate::ClientBuilder::loads_without_redis) at a time, and not stored. A request that finds
/// no place among them in a second is rendered by itself. No error of Redis ever becomes an error
/// of a response.
///
/// While Redis refuses the credentials or the rights of the client, each request is rendered by
/// itself, however many there are. That does not pass by itself, so somebody must look. They are
/// counted as [`beside`](super::PageStats::beside).
#[derive(Clone)]
pub struct PageCache {
    pub(super) cache: Cache,
    pub(super) settings: Arc<Settings>,
    pub(super) known: Arc<Known>,
    pub(super) under_way: Arc<UnderWay>,
    pub(super) counts: Arc<Counts>,
}

impl PageCache {
    /// Makes a layer that keeps its pages in `cache`. Give it a cache of its own, whose name
    /// nothing else uses.
    ///
    /// The layer turns [jitter](Cache::jitter) off, because a page must not outlive its freshness,
    /// and does without Redis while it is [out](Outage::Bypass). All other settings of the cache
    /// hold: [`max_load`](Cache::max_load) bounds how long requests wait for one render,
    /// [`compression`](Cache::compression) how pages are stored.
    #[must_use]
    pub fn new(cache: Cache) -> Self {
        Self {
            counts: Arc::new(Counts::in_cache(&cache)),
            cache: cache.jitter(0.0).outage(Outage::Bypass),
            settings: Arc::default(),
            known: Arc::default(),
            under_way: Arc::default(),
        }
    }

    /// Sets the hosts whose pages are stored, as requests name them (`Host`), with the port if it
    /// is neither 80 nor 443. Requests for others pass. By default, pages of every host are stored,
    /// each under its own key. A request that names one of those two ports is one for the host, and
    /// its page has a key of its own, too. A purge by URL or prefix reaches both.
    ///
    /// Set it. Otherwise clients choose the host that their requests name, and can fill Redis with
    /// copies of each page.
    #[must_use]
    pub fn hosts(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.change().hosts.list(hosts.into_iter().map(Into::into));
        self
    }

    /// Lets `aliases` share the pages of `host`: a page that was stored for one of them is given to
    /// all, and a purge of one reaches it. Call it once for each host that has aliases. Hosts are
    /// spelt as in [`hosts`](Self::hosts).
    ///
    /// ```no_run
    /// # fn example(pages: hedgerow::http::PageCache) -> hedgerow::http::PageCache {
    /// pages
    ///     .hosts(["example.org"])
    ///     .host_aliases("example.org", ["www.example.org"])
    /// # }
    /// ```
    ///
    /// If there are [`hosts`](Self::hosts), `host` must be one of them, and the aliases need not
    /// be: an alias is replaced by its host before the layer looks at them. An alias of an alias is
    /// one of its host. If an alias is set again, for another host, the last setting holds.
    ///
    /// The service is asked with the host that the first client has named, and its page is given to
    /// the clients of the others. So it is only for a service that answers all of them alike. Do
    /// not name an alias that the service redirects to its host: the redirect would be given to the
    /// clients of the host, too. What a proxy names (`X-Forwarded-Host`) stays as it is.
    ///
    /// The setting is a part of no key. Give it to all layers that share the cache.
    #[must_use]
    pub fn host_aliases(
        mut self,
        host: impl Into<String>,
        aliases: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let (host, hosts) = (host.into(), &mut self.change().hosts);
        for alias in aliases {
            hosts.share(&host, &alias.into());
        }
        self
    }

    /// Stores pages without explicit freshness for `ttl`. By default they are not stored.
    ///
    /// It holds for the statuses 200, 301, 308, 404 and 410, and never for requests with
    /// credentials (see [`login_cookies`](Self::login_cookies)).
    #[must_use]
    pub fn default_ttl(mut self, ttl: Duration) -> Self {
        self.change().default_ttl = Some(ttl);
        self
    }

    /// Sets how long a page that says nothing of `stale-while-revalidate` is served stale while it
    /// is rendered anew. Zero by default. `must-revalidate` and `proxy-revalidate` forbid it;
    /// `s-maxage` does not, although it would if only the response were asked (RFC 9111, 5.2.2.10).
    #[must_use]
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.change().stale_while_revalidate = window;
        self
    }

    /// Sets how long a page that says nothing of `stale-if-error` is served stale if the service
    /// fails: with an error, a panic, or one of the statuses 500, 502, 503 and 504. Zero by
    /// default. `must-revalidate` and `proxy-revalidate` forbid it; `s-maxage` does not, as above.
    #[must_use]
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.change().stale_if_error = window;
        self
    }

    /// Sets the most bytes of a body that is stored: 1 MiB by default. A larger body is streamed to
    /// the client that asked. At most the limit and one frame of it are held.
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.change().body_limit = bytes;
        self
    }

    /// Sets how long it is remembered that a page may not be stored: 5 s by default. For so long,
    /// and then until another render has ended, requests for it go to the service at once and side
    /// by side.
    #[must_use]
    pub fn marker_ttl(mut self, ttl: Duration) -> Self {
        self.change().marker_ttl = ttl;
        self
    }

    /// Sets which parameters of the query belong to a page. They are sorted by name; of one that is
    /// given several times, the order stays. By default, the whole query belongs to it, as it was
    /// sent.
    ///
    /// When a page is rendered for the cache, the URL that the service is given does not have the
    /// other parameters: what is not in the key must not change the page. Axum keeps them in
    /// `OriginalUri`, see [`on_render`](Self::on_render).
    #[must_use]
    pub fn only_query(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.change().query = Query::Only(names.into_iter().map(Into::into).collect());
        self
    }

    /// Leaves parameters out of the query, such as those of campaigns (`utm_source`): they do not
    /// belong to a page, and the URL that the service is given when a page is rendered for the
    /// cache does not have them. See [`on_render`](Self::on_render) for `OriginalUri`.
    #[must_use]
    pub fn ignore_query(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.change().query = Query::Without(names.into_iter().map(Into::into).collect());
        self
    }

    /// Makes the values of more request headers a part of the key, as if every page varied by them.
    ///
    /// Headers that may replace what was asked for are always a part of it, such as
    /// `X-Forwarded-Host`, `X-Forwarded-Proto` and `X-Original-URL`. Whatever else the service
    /// looks at must be in `Vary`, or here.
    #[must_use]
    pub fn key_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.change().key_headers.extend(names);
        self
    }

    /// Sets which cookies say who the user is. By default, any cookie may.
    ///
    /// A request with such a cookie, or with `Authorization`, has credentials. Its pages are kept
    /// apart from those of other requests, and are stored only if the response says `public` or
    /// `s-maxage`: then all requests with credentials share them.
    #[must_use]
    pub fn login_cookies(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        self.change().login_cookies = Cookies::Named(names);
        self
    }

    /// Sets which headers say who the user is, beside `Authorization`: such as `X-Api-Key`, or the
    /// header in which a proxy names the user. A request with one of them has credentials, see
    /// [`login_cookies`](Self::login_cookies).
    #[must_use]
    pub fn login_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.change().login_headers = names.into_iter().collect();
        self
    }

    /// Lets requests with one of these cookies pass: they are never given a stored page, and their
    /// answers are not stored. By default, none is.
    #[must_use]
    pub fn pass_cookies(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.change().pass_cookies = names.into_iter().map(Into::into).collect();
        self
    }

    /// Ignores the `Cache-Control` and `Pragma` of requests. By default they are followed, so a
    /// browser that reloads a page (`no-cache`, `max-age=0`) has it rendered, for itself only.
    #[must_use]
    pub fn ignore_request_directives(mut self) -> Self {
        self.change().directives = Directives::Ignored;
        self
    }

    /// Sets by how many segments of a path [`purge_prefix`](Self::purge_prefix) can purge: 3 by
    /// default, and 16 at most. Each costs a tag on each page, which is read with it.
    #[must_use]
    pub fn prefix_depth(mut self, segments: usize) -> Self {
        self.change().prefix_depth = segments.min(DEEPEST);
        self
    }

    /// Sets how many variants of a page are stored, beside the first one: 64 by default. Requests
    /// that find no room for theirs are rendered.
    #[must_use]
    pub fn variants(mut self, most: usize) -> Self {
        self.change().variants = most;
        self
    }

    /// Sets how tags of a page follow from its request.
    ///
    /// A tag that is known before a page is rendered is better than one that the handler says
    /// ([`CacheTags`](super::CacheTags)): the first page with a new tag that the handler has said
    /// is not stored, see [`Loading::tags`](crate::cache::Loading::tags).
    #[must_use]
    pub fn tags_by(mut self, by: impl Fn(&Parts) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.change().tags_by = Some(Arc::new(by));
        self
    }

    /// Changes each request before its page is rendered for the cache, such as to take out what
    /// other requests for the page need not have.
    ///
    /// Axum keeps the whole URL of the request in the extension `OriginalUri`, with the parameters
    /// that do [not belong](Self::only_query) to a page. If a handler makes links of it, the client
    /// that asks first chooses the links of all others. So put the URL of the page in its place:
    ///
    /// ```no_run
    /// # fn example(pages: hedgerow::http::PageCache) -> hedgerow::http::PageCache {
    /// pages.only_query(["page"]).on_render(|head| {
    ///     let page = axum::extract::OriginalUri(head.uri.clone());
    ///     head.extensions.insert(page);
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn on_render(mut self, change: impl Fn(&mut Parts) + Send + Sync + 'static) -> Self {
        self.change().on_render = Some(Arc::new(change));
        self
    }

    /// Sets the name of this cache in `Cache-Status` (RFC 9211): `hedgerow` by default. Letters,
    /// digits, `-`, `_` and `.` are kept of it.
    #[must_use]
    pub fn status_name(mut self, name: &str) -> Self {
        let kept = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        self.change().status_name = Some(name.chars().filter(kept).collect());
        self
    }

    /// Leaves `Cache-Status` out of the answers.
    #[must_use]
    pub fn without_cache_status(mut self) -> Self {
        self.change().status_name = None;
        self
    }

    /// Shows the key of the page in `Cache-Status`.
    #[must_use]
    pub fn keys_in_cache_status(mut self) -> Self {
        self.change().status_keys = super::settings::StatusKeys::Shown;
        self
    }

    /// Returns what this layer has done in this process so far. Its clones are counted together.
    /// With the feature `metrics`, the same goes to the `metrics` facade.
    pub fn stats(&self) -> PageStats {
        self.counts.so_far()
    }

    fn change(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }
}

impl fmt::Debug for PageCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageCache")
            .field("cache", &self.cache)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The most segments of a path that have tags.
const DEEPEST: usize = 16;
