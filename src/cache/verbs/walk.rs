//! `Walk`: a walk over the entries of a cache, on one server after the other.
//!
//! Invariant: an entry that is there from the beginning to the end is found, as long as its slot
//! does not move meanwhile. A walk keeps no list of what it has found. `keys`, `count` and
//! `remove_matching` walk.

use std::collections::VecDeque;

use super::pattern::Pattern;
use crate::cache::Cache;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryAt, Rooms};
use crate::topology::Server;

/// Which versions of a cache are walked over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Versions {
    Own,
    All,
}

/// A walk that goes on with each [`next`](Self::next).
#[derive(Debug)]
pub(super) struct Walk {
    cache: Cache,
    pattern: Pattern,
    glob: String,
    versions: Versions,
    /// The servers that are still to be walked over. `None` before they are known.
    servers: Option<VecDeque<Server>>,
    step: Step,
}

/// Where a walk is on its server.
#[derive(Debug, Default)]
struct Step {
    /// 0 at the beginning.
    cursor: u64,
    /// The session that gave the cursor.
    session: Option<u64>,
    restarts: u32,
}

impl Walk {
    pub(super) fn new(
        cache: &Cache,
        pattern: &str,
        rooms: Rooms,
        versions: Versions,
    ) -> Result<Self> {
        // The first error of a setting is the error of the walk.
        cache.names()?;
        let pattern = Pattern::parse(pattern)?;
        let space = cache.client.namespace();
        Ok(Self {
            glob: space.entries_like(&cache.setup.name, &pattern.glob(), rooms),
            cache: cache.clone(),
            pattern,
            versions,
            servers: None,
            step: Step::default(),
        })
    }

    /// Returns the entries that the next step has found. `None` at the end. An entry may be
    /// returned several times.
    ///
    /// Cancel safety: the next call repeats a step that was dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<EntryAt>>> {
        let client = &self.cache.client;
        let deadline = self.cache.deadline_now();
        if self.servers.is_none() {
            self.servers = Some(client.servers(deadline).await?.into());
        }
        let Some(server) = self.servers.as_ref().and_then(VecDeque::front) else {
            return Ok(None);
        };
        let page = client.scan(server, self.step.cursor, &self.glob, deadline);
        let page = page.await?;
        let session = client.session_with(server);
        if self.step.cursor != 0 && self.step.session != session {
            // Perhaps another process is there now, to which the cursor means nothing.
            self.step.restart()?;
        } else if page.cursor == 0 {
            self.step = Step::default();
            self.servers.get_or_insert_default().pop_front();
        } else {
            (self.step.cursor, self.step.session) = (page.cursor, session);
        }
        let found = page.keys.iter().filter_map(|key| self.entry(key));
        Ok(Some(found.collect()))
    }

    fn entry(&self, key: &str) -> Option<EntryAt> {
        let (space, setup) = (self.cache.client.namespace(), &self.cache.setup);
        let entry = space.entry_at(&setup.name, key)?;
        let is_meant = self.versions == Versions::All || entry.version == setup.version;
        (is_meant && self.pattern.matches(&entry.name)).then_some(entry)
    }
}

impl Step {
    fn restart(&mut self) -> Result<()> {
        if self.restarts == MOST_RESTARTS {
            return Err(Error::new(
                ErrorKind::Disconnected,
                "the connection was lost again and again during a walk over all keys; call again",
            ));
        }
        *self = Self {
            restarts: self.restarts + 1,
            ..Self::default()
        };
        Ok(())
    }
}

/// How often the walk over one server begins anew, because the connection to it was lost.
const MOST_RESTARTS: u32 = 10;
