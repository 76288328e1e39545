//! `PurgeEndpoint`: purges over HTTP.
//!
//! Invariant: nothing is looked at before the token is found right, and how long that takes says
//! nothing of the token. It answers 204 only once the purge is done.

use std::convert::Infallible;
use std::fmt;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tower_service::Service;

use super::page_cache::PageCache;
use super::purge::InvalidArgument;
use super::query::decoded;
use crate::cache::Invalidate;
use crate::error::Error;

/// A service that purges pages, made by [`PageCache::purge_endpoint`].
///
/// It takes `POST` with `Authorization: Bearer <token>`, and purges what its query names:
/// `url=..`, `prefix=..` and `tag=..`, each as often as needed, up to 100 in all. The body is not
/// read.
///
/// | answer | means |
/// |---|---|
/// | 204 | all is purged |
/// | 400 | a URL or a tag cannot be used, or nothing is named; nothing is purged; the text says why |
/// | 401 | the token is missing or wrong |
/// | 405 | another method than `POST` |
/// | 503 | Redis did not do all of it; ask again; the client goes on in the background if the text is `not purged yet` |
///
/// ```no_run
/// # use axum::Router;
/// # fn example(pages: hedgerow::http::PageCache, token: &str) -> Result<Router, Box<dyn std::error::Error>> {
/// let app = Router::new().route_service("/purge", pages.purge_endpoint(token)?);
/// # Ok(app)
/// # }
/// ```
///
/// ```sh
/// curl -X POST -H "Authorization: Bearer $TOKEN" 'http://127.0.0.1:3000/purge?tag=product:42'
/// ```
#[derive(Clone)]
pub struct PurgeEndpoint {
    pages: PageCache,
    /// Of the token: two digests are of one length.
    token: [u8; 32],
}

impl PageCache {
    /// Makes a service that purges over HTTP, for those that know `token`.
    ///
    /// # Errors
    /// If the token has fewer than 16 bytes.
    pub fn purge_endpoint(&self, token: &str) -> Result<PurgeEndpoint, InvalidArgument> {
        if token.len() < SHORTEST_TOKEN {
            return Err(InvalidArgument::new(format!(
                "the token has fewer than {SHORTEST_TOKEN} bytes; use a longer, random one"
            )));
        }
        Ok(PurgeEndpoint {
            pages: self.clone(),
            token: Sha256::digest(token).into(),
        })
    }
}

impl<B> Service<Request<B>> for PurgeEndpoint {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let purges = self.purges(request.method(), request.headers(), request.uri().query());
        let known = self.pages.known.clone();
        async move {
            let purges = match purges {
                Ok(purges) => purges,
                Err(refused) => return Ok(*refused),
            };
            let purges = purges.into_iter().map(IntoFuture::into_future);
            let failed = join_all(purges).await.into_iter().filter_map(Result::err);
            // Those that are lost first.
            Ok(match failed.min_by_key(Error::goes_on) {
                None => answer(StatusCode::NO_CONTENT, String::new()),
                Some(error) if !error.goes_on() => {
                    known.lost_purge(&error);
                    let again = "not all is purged; ask again".to_owned();
                    answer(StatusCode::SERVICE_UNAVAILABLE, again)
                }
                Some(error) => {
                    tracing::warn!(target: "hedgerow::pages", %error, "not purged");
                    answer(StatusCode::SERVICE_UNAVAILABLE, "not purged yet".to_owned())
                }
            })
        }
        .boxed()
    }
}

impl PurgeEndpoint {
    /// The purges that a request asks for.
    ///
    /// # Errors
    /// With the answer, if it is refused.
    fn purges(
        &self,
        method: &Method,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Vec<Invalidate>, Refused> {
        if !self.knows_token(headers) {
            let mut refused = answer(StatusCode::UNAUTHORIZED, String::new());
            let bearer = HeaderValue::from_static("Bearer");
            refused
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, bearer);
            return Err(refused.into());
        }
        if method != Method::POST {
            let mut refused = answer(StatusCode::METHOD_NOT_ALLOWED, String::new());
            let post = HeaderValue::from_static("POST");
            refused.headers_mut().insert(header::ALLOW, post);
            return Err(refused.into());
        }
        let bad = |why: &str| -> Refused { answer(StatusCode::BAD_REQUEST, why.to_owned()).into() };
        let named = query
            .unwrap_or_default()
            .split('&')
            .filter(|it| !it.is_empty());
        let named: Vec<&str> = named.collect();
        if named.is_empty() || named.len() > MOST_NAMED {
            return Err(bad("name from 1 to 100 of url=, prefix= and tag="));
        }
        let (mut purges, mut tags) = (Vec::new(), Vec::new());
        for parameter in named {
            let (what, value) = parameter.split_once('=').unwrap_or_default();
            let value = String::from_utf8(decoded(value).into_owned());
            let value = value.map_err(|_| bad("a value is no text"))?;
            let purge = match what {
                "url" => self.pages.purge_url(&value),
                "prefix" => self.pages.purge_prefix(&value),
                "tag" if value.is_empty() || value.len() > LONGEST_TAG => {
                    return Err(bad("a tag has from 1 to 1,024 bytes"));
                }
                "tag" => {
                    tags.push(value);
                    continue;
                }
                _ => return Err(bad("only url=, prefix= and tag= are known")),
            };
            purges.push(purge.map_err(|why| bad(&why.to_string()))?);
        }
        if !tags.is_empty() {
            purges.push(self.pages.purge_tags(tags));
        }
        Ok(purges)
    }

    fn knows_token(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(given), None) = (given.next(), given.next()) else {
            return false;
        };
        // The scheme is no secret, and may be in any case.
        let scheme = given.as_bytes().get(..SCHEME.len());
        if !scheme.is_some_and(|it| it.eq_ignore_ascii_case(SCHEME)) {
            return false;
        }
        let digest: [u8; 32] = Sha256::digest(&given.as_bytes()[SCHEME.len()..]).into();
        digest.ct_eq(&self.token).into()
    }
}

impl fmt::Debug for PurgeEndpoint {
    /// Leaves out the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PurgeEndpoint")
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

/// The answer to a request that is refused.
type Refused = Box<Response<Full<Bytes>>>;

fn answer(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    let never = HeaderValue::from_static("no-store");
    answer.headers_mut().insert(header::CACHE_CONTROL, never);
    answer
}

const SCHEME: &[u8] = b"Bearer ";

/// What is shorter can be guessed.
const SHORTEST_TOKEN: usize = 16;

/// The most URLs, prefixes and tags of one request.
const MOST_NAMED: usize = 100;

/// The most bytes of a tag.
const LONGEST_TAG: usize = 1024;
