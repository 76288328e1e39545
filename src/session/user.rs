//! `UserOf`: to whom a session belongs.
//!
//! Invariant: the tag of a user is made of the digest of the user and the name of the cache, so
//! that stores of two caches end sessions apart.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::base::Data;
use super::digest;
use crate::Cache;

/// How a store learns from the data of a session to whom it belongs.
#[derive(Clone)]
pub(super) struct UserOf(Arc<FindUser>);

type FindUser = dyn Fn(&Data) -> Option<String> + Send + Sync;

impl UserOf {
    pub(super) fn new(user: impl Fn(&Data) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(user))
    }

    /// What stands under `key`: a text as it is, anything else as JSON.
    pub(super) fn key(key: &str) -> Self {
        let key = key.to_owned();
        Self::new(move |data| match data.get(&key)? {
            Value::Null => None,
            Value::String(user) => Some(user.clone()),
            other => Some(other.to_string()),
        })
    }

    pub(super) fn user(&self, data: &Data) -> Option<String> {
        (self.0)(data)
    }
}

impl fmt::Debug for UserOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserOf")
    }
}

/// The tag that the sessions of `user` carry.
pub(super) fn tag(cache: &Cache, user: &str) -> String {
    format!("session-user:{}:{}", cache.name(), digest::of_user(user))
}
