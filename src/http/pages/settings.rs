//! `Settings`: what a [`PageCache`](super::PageCache) was told.
//!
//! Invariant: a layer's settings never change; a changed layer has others. The pure parts are given
//! what they need of them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::request::Parts;

/// The settings of one layer.
#[derive(Clone)]
pub(super) struct Settings {
    /// In lower case. Empty if every host will do.
    pub(super) hosts: Vec<String>,
    /// Hosts, each with the one whose pages it shares. In lower case.
    pub(super) aliases: Vec<(String, String)>,
    pub(super) default_ttl: Option<Duration>,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
    pub(super) body_limit: usize,
    pub(super) marker_ttl: Duration,
    pub(super) query: Query,
    pub(super) key_headers: Vec<HeaderName>,
    pub(super) login_cookies: Cookies,
    /// Headers that say who the user is, beside `Authorization`.
    pub(super) login_headers: Vec<HeaderName>,
    pub(super) pass_cookies: Vec<String>,
    pub(super) directives: Directives,
    pub(super) prefix_depth: usize,
    pub(super) variants: usize,
    pub(super) tags_by: Option<Arc<TagsBy>>,
    pub(super) on_render: Option<Arc<OnRender>>,
    /// The name in `Cache-Status`. `None` if there is to be none.
    pub(super) status_name: Option<String>,
    pub(super) status_keys: StatusKeys,
}

/// How tags follow from a request.
pub(super) type TagsBy = dyn Fn(&Parts) -> Vec<String> + Send + Sync;

/// What is done to a request before its page is rendered for the cache.
pub(super) type OnRender = dyn Fn(&mut Parts) + Send + Sync;

/// Which parameters of a query belong to a page.
#[derive(Debug, Clone)]
pub(super) enum Query {
    /// All, as they were sent.
    Whole,
    Only(Vec<String>),
    Without(Vec<String>),
}

/// Which cookies say who the user is.
#[derive(Debug, Clone)]
pub(super) enum Cookies {
    Any,
    Named(Vec<String>),
}

/// Whether requests may say what they want of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directives {
    Followed,
    Ignored,
}

/// Whether `Cache-Status` shows keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusKeys {
    Hidden,
    Shown,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            aliases: Vec::new(),
            default_ttl: None,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            body_limit: 1024 * 1024,
            marker_ttl: Duration::from_secs(5),
            query: Query::Whole,
            key_headers: Vec::new(),
            login_cookies: Cookies::Any,
            login_headers: Vec::new(),
            pass_cookies: Vec::new(),
            directives: Directives::Followed,
            prefix_depth: 3,
            variants: 64,
            tags_by: None,
            on_render: None,
            status_name: Some("hedgerow".to_owned()),
            status_keys: StatusKeys::Hidden,
        }
    }
}

impl Settings {
    /// The host whose pages are those of `host`: itself, unless it is an alias.
    pub(super) fn shared<'h>(&'h self, host: &'h str) -> &'h str {
        let mut aliases = self.aliases.iter();
        let known = aliases.find(|(alias, _)| alias.eq_ignore_ascii_case(host));
        known.map_or(host, |(_, shared)| shared)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("hosts", &self.hosts)
            .field("aliases", &self.aliases)
            .field("default_ttl", &self.default_ttl)
            .field("body_limit", &self.body_limit)
            .field("query", &self.query)
            .field("login_cookies", &self.login_cookies)
            .field("pass_cookies", &self.pass_cookies)
            .finish_non_exhaustive()
    }
}
