//! Purges: by URL, by prefix, by tag, and of everything.
//!
//! Invariant: once a purge has returned, no request that begins later is given a page that was
//! rendered before it began. Users and the purge endpoint call this.

use std::error::Error as StdError;
use std::fmt;

use super::key::{Place, prefix_tag, url_tag};
use super::page_cache::PageCache;
use crate::cache::Invalidate;

/// An argument of a [`PageCache`] that cannot be used. Its text says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidArgument(String);

impl PageCache {
    /// Purges the page at `url`, with all its variants. Await what it returns.
    ///
    /// `url` is `https://host/path?query`, or `/path?query` if [`hosts`](Self::hosts) are set: then
    /// it is purged on each of them. The scheme does not count, and an
    /// [alias](Self::host_aliases) stands for its host. The query is looked at as that of a
    /// request: other parameters than those that belong to a page are left out.
    ///
    /// ```no_run
    /// # async fn example(pages: hedgerow::http::PageCache) -> Result<(), Box<dyn std::error::Error>> {
    /// pages.purge_url("https://shop.example/products/42")?.await?;
    /// // May be served stale while it is rendered anew:
    /// pages.purge_url("https://shop.example/")?.soft().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If `url` is not such a URL. What is returned fails as
    /// [`Cache::invalidate_tags`](crate::Cache::invalidate_tags) does, and goes on in the
    /// background after an outage, too.
    pub fn purge_url(&self, url: &str) -> Result<Invalidate, InvalidArgument> {
        let places = self.places(url)?;
        let tags = places.iter().map(url_tag);
        Ok(self.cache.invalidate_tags(tags))
    }

    /// Purges all pages whose path is that of `url`, or begins with it: `/blog` stands for `/blog`,
    /// `/blog?page=2` and `/blog/2026/may`, and not for `/blogs`. `/` stands for all pages of a
    /// host. The query of `url` does not count.
    ///
    /// # Errors
    /// As [`purge_url`](Self::purge_url), and if the path has more segments than
    /// [`prefix_depth`](Self::prefix_depth) says.
    pub fn purge_prefix(&self, url: &str) -> Result<Invalidate, InvalidArgument> {
        let mut tags = Vec::new();
        for place in self.places(url)? {
            let segments: Vec<&str> = place.segments().collect();
            let most = self.settings.prefix_depth;
            if segments.len() > most {
                let deep = segments.len();
                return Err(InvalidArgument(format!(
                    "the prefix has {deep} segments; pages can be purged by {most}, see prefix_depth"
                )));
            }
            tags.push(prefix_tag(&place.host, &segments));
        }
        Ok(self.cache.invalidate_tags(tags))
    }

    /// Purges all pages that carry any of `tags`, and what other caches of the namespace hold under
    /// them: it is [`Cache::invalidate_tags`](crate::Cache::invalidate_tags).
    pub fn purge_tags(&self, tags: impl IntoIterator<Item = impl AsRef<str>>) -> Invalidate {
        self.cache.invalidate_tags(tags)
    }

    /// Purges all pages: it is [`Cache::clear`](crate::Cache::clear).
    pub fn purge_all(&self) -> Invalidate {
        self.cache.clear()
    }

    /// The places that `url` stands for.
    fn places(&self, url: &str) -> Result<Vec<Place>, InvalidArgument> {
        let refused = |why: &str| InvalidArgument(format!("{why}; use https://host/path?query"));
        let uri: http::Uri = url.parse().map_err(|_| refused("this is no URL"))?;
        let (hosts, query) = (&self.settings.hosts, &self.settings.query);
        let place = |host: &str| Place::new(hosts.shared(host), &uri, query);
        match uri.authority() {
            Some(authority) if uri.scheme().is_some() => Ok(vec![place(authority.as_str())]),
            // `host` alone would be read as an authority.
            Some(_) => Err(refused("the URL has no scheme")),
            None if hosts.listed().is_empty() => {
                Err(refused("the URL has no host, and no hosts are set"))
            }
            None => Ok(hosts.listed().iter().map(|it| place(it)).collect()),
        }
    }
}

impl InvalidArgument {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for InvalidArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for InvalidArgument {}
