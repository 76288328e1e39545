//! `Settings`: what a [`PageCache`](super::PageCache) was told.
//!
//! Invariant: a layer's settings never change; a changed layer has others. The pure parts are given
//! what they need of them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::request::Parts;

use super::hosts::Hosts;

/// The settings of one layer.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) hosts: Hosts,
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
            hosts: Hosts::default(),
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

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("hosts", &self.hosts)
            .field("default_ttl", &self.default_ttl)
            .field("body_limit", &self.body_limit)
            .field("query", &self.query)
            .field("login_cookies", &self.login_cookies)
            .field("pass_cookies", &self.pass_cookies)
            .finish_non_exhaustive()
    }
}
