//! `Walk`: a walk over the entries of a cache, on one server after the other.
//!
//! Invariant: an entry that is there from the beginning to the end is found, as long as its slot
//! does not move meanwhile, and the entry is not moved to another version. In a cluster, the walk
//! ends only when every present primary was walked over since it was known as one: a server that is
//! no primary any more answers, too, and may have nothing. A walk keeps no list of what it has
//! found. `keys`, `count` and `remove_matching` walk.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::pattern::Pattern;
use crate::cache::Cache;
use crate::codec::Shape;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryAt, Rooms};
use crate::time::Deadline;
use crate::topology::Server;
use crate::wire::scan::KeyType;

/// Which versions of a cache are walked over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Versions {
    Own,
    All,
}

/// What a walk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// To list entries.
    List,
    /// To remove entries. Such a walk keeps trying while the server is out, whatever the settings
    /// are.
    Remove,
    /// To end loads that are under way. It finds their leases, and keeps trying, too.
    EndLoads,
}

/// What one step has found.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) server: Server,
    keys: Vec<String>,
    sought: Arc<Sought>,
}

/// What a walk looks for.
#[derive(Debug)]
struct Sought {
    cache: Cache,
    pattern: Pattern,
    /// The kind of the keys. The glob for all versions meets other kinds, too.
    rooms: Rooms,
}

/// A walk that goes on with each [`next`](Self::next).
#[derive(Debug)]
pub(super) struct Walk {
    sought: Arc<Sought>,
    glob: String,
    of: KeyType,
    aim: Aim,
    /// The servers that are still to be walked over. `None` before they are known.
    servers: Option<VecDeque<Server>>,
    walked: Vec<Server>,
    step: Step,
    restarts: u32,
}

/// Where a walk is on its server.
#[derive(Debug, Default)]
struct Step {
    /// 0 at the beginning.
    cursor: u64,
    /// The session that gave the cursor.
    session: Option<u64>,
}

impl Walk {
    pub(super) fn new(cache: &Cache, pattern: &str, versions: Versions, aim: Aim) -> Result<Self> {
        // The first error of a setting is the error of the walk.
        cache.names()?;
        let pattern = Pattern::parse(pattern)?;
        let (space, setup) = (cache.client.namespace(), &cache.setup);
        let version = match versions {
            Versions::Own => Some(setup.version),
            Versions::All => None,
        };
        // A key of another type is not ours.
        let (rooms, of) = match (aim, setup.stack.shape) {
            (Aim::List | Aim::Remove, Shape::Enveloped) => (Rooms::Values, KeyType::Text),
            (Aim::List | Aim::Remove, Shape::Bare) => (Rooms::BareValues, KeyType::Text),
            (Aim::EndLoads, Shape::Enveloped) => (Rooms::Leases, KeyType::Hash),
            (Aim::EndLoads, Shape::Bare) => (Rooms::BareLeases, KeyType::Hash),
        };
        Ok(Self {
            of,
            glob: space.entries_like(&setup.name, &pattern.glob(), rooms, version),
            sought: Arc::new(Sought {
                cache: cache.clone(),
                pattern,
                rooms,
            }),
            aim,
            servers: None,
            walked: Vec::new(),
            step: Step::default(),
            restarts: 0,
        })
    }

    /// Returns what the next step has found. `None` at the end. An entry may be found several
    /// times. Call this again before the entries are dealt with: the server then makes the next
    /// step meanwhile.
    ///
    /// Cancel safety: the next call repeats a step that was dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Batch>> {
        let deadline = self.deadline();
        let Some(server) = self.server(deadline).await? else {
            return Ok(None);
        };
        let client = &self.sought.cache.client;
        let before = client.session_with(&server);
        let keys = (&*self.glob, self.of);
        let page = client.scan(&server, self.step.cursor, keys, deadline);
        let page = match page.await {
            Ok(page) => page,
            Err(error) if !self.is_replaced(&server).await => return Err(error),
            Err(_) => {
                // The server that has replaced it is found at the end.
                self.restart()?;
                self.step = Step::default();
                self.servers.get_or_insert_default().pop_front();
                return Ok(Some(self.batch(server, Vec::new())));
            }
        };
        let session = client.session_with(&server);
        let first = self.step.cursor == 0;
        if before != session || !first && self.step.session != session {
            // Perhaps another process is there now, to which the cursor means nothing, and it is
            // not known which of them has answered.
            self.restart()?;
            self.step = Step::default();
        } else if page.cursor == 0 {
            self.step = Step::default();
            self.servers.get_or_insert_default().pop_front();
            self.walked.push(server.clone());
        } else {
            (self.step.cursor, self.step.session) = (page.cursor, session);
        }
        Ok(Some(self.batch(server, page.keys)))
    }

    fn batch(&self, server: Server, keys: Vec<String>) -> Batch {
        Batch {
            server,
            keys,
            sought: self.sought.clone(),
        }
    }

    /// Returns the server of the next step.
    async fn server(&mut self, deadline: Deadline) -> Result<Option<Server>> {
        if self.servers.as_ref().is_none_or(VecDeque::is_empty) {
            // Asked again at the end: a failover may have made others primaries.
            let present = self.sought.cache.client.servers(deadline).await?;
            let is_new = |server: &Server| !self.walked.contains(server);
            let new: VecDeque<Server> = present.into_iter().filter(is_new).collect();
            if self.servers.is_some() && !new.is_empty() {
                self.restart()?;
            }
            self.servers = Some(new);
        }
        Ok(self.servers.as_ref().and_then(VecDeque::front).cloned())
    }

    /// Returns whether a server that does not answer is no primary of its cluster any more.
    async fn is_replaced(&self, server: &Server) -> bool {
        if !matches!(server, Server::Primary(_)) {
            return false;
        }
        let present = self.sought.cache.client.servers(self.deadline()).await;
        present.is_ok_and(|present| !present.contains(server))
    }

    /// The deadline of one step.
    fn deadline(&self) -> Deadline {
        let deadline = self.sought.cache.deadline_now();
        match self.aim {
            Aim::List => deadline,
            // What stays because a walk has ended would be stale.
            Aim::Remove | Aim::EndLoads => deadline.keep_trying().reserved(),
        }
    }

    /// Counts a part that is walked over anew.
    fn restart(&mut self) -> Result<()> {
        if self.restarts == MOST_RESTARTS {
            return Err(Error::new(
                ErrorKind::Disconnected,
                "servers changed again and again during a walk over all keys; call again",
            ));
        }
        self.restarts += 1;
        Ok(())
    }
}

impl Batch {
    /// Returns the entries that were found.
    // Not with the step itself, so that they are made out while the next step is under way.
    pub(super) fn entries(&self) -> impl Iterator<Item = EntryAt> {
        self.keys.iter().filter_map(|key| self.sought.entry(key))
    }
}

impl Sought {
    fn entry(&self, key: &str) -> Option<EntryAt> {
        let space = self.cache.client.namespace();
        let entry = space.entry_at(&self.cache.setup.name, key, self.rooms)?;
        self.pattern.matches(&entry.name).then_some(entry)
    }
}

/// The entries that a walk has returned last, as hashes. The server returns a key again after it
/// has resized its table, and a walk begins anew on a server to which the connection was lost.
#[derive(Debug)]
pub(super) struct Seen {
    /// So that nobody can choose keys of equal hashes.
    seed: u64,
    known: HashSet<u128>,
    order: VecDeque<u128>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            seed: rand::random(),
            known: HashSet::new(),
            order: VecDeque::new(),
        }
    }
}

impl Seen {
    /// Notes an entry of a version. Returns whether it is not among the last ones.
    pub(super) fn is_new(&mut self, version: u32, name: &str) -> bool {
        let seed = self.seed.wrapping_add(u64::from(version));
        let hash = xxh3_128_with_seed(name.as_bytes(), seed);
        if !self.known.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > MOST_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// About 13 MiB of hashes.
const MOST_SEEN: usize = 1 << 18;

/// How many parts of a walk begin anew at most, because a connection was lost or a server changed.
const MOST_RESTARTS: u32 = 20;
