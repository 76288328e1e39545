//! `CacheTags`: the tags that a handler gives its page.
//!
//! Invariant: no tag ever leaves the service; the header that names them is taken out of every
//! response. Handlers put it into their responses, and a render takes it out.

use http::Response;

/// The tags of a page, as an extension of its response: purging any of them purges the page.
///
/// A handler may as well send the header `Cache-Tag` with a list that is separated by commas. The
/// layer takes that header out of every response. A page has room for 200 tags of its handler; with
/// more it is not stored.
///
/// Tags are those of the namespace. So [`Cache::invalidate_tags`](crate::Cache::invalidate_tags)
/// purges pages, and [`PageCache::purge_tags`](super::PageCache::purge_tags) invalidates what other
/// caches hold under the same tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheTags(Vec<String>);

impl CacheTags {
    /// Names tags.
    pub fn new(tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self(tags.into_iter().map(Into::into).collect())
    }

    /// Takes the tags out of a response: those of the extension, and those of the header.
    pub(super) fn taken<B>(response: &mut Response<B>) -> Vec<String> {
        let said = response.extensions_mut().remove::<Self>();
        let mut tags = said.unwrap_or_default().0;
        for line in response.headers().get_all(CACHE_TAG) {
            // A tag is a text. Bytes that are none are kept apart from every text, so that nothing
            // is stored without the tag that it was to have.
            let line = String::from_utf8_lossy(line.as_bytes());
            let named = line.split(',').map(str::trim);
            tags.extend(named.filter(|tag| !tag.is_empty()).map(str::to_owned));
        }
        response.headers_mut().remove(CACHE_TAG);
        tags
    }
}

/// The header in which a handler may name tags.
const CACHE_TAG: &str = "cache-tag";

/// The most tags that a handler may give a page.
pub(super) const MOST_TAGS: usize = 200;
