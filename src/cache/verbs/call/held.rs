//! What a call takes from the near cache: before it reads, and where its read has failed.

use std::sync::Arc;

use super::Call;
use crate::cache::near::held::NearHit;
use crate::cache::read::judge::Want;
use crate::error::Error;

impl Call {
    /// Returns the value that the near cache holds, and counts it.
    pub(super) fn near_hit<V: Send + Sync + 'static>(&self) -> Option<Arc<V>> {
        let value = self.near_value(self.want)?;
        self.hit(None, &value);
        Some(value)
    }

    /// Returns the value that the near cache holds, unless its early refresh is due: then the entry
    /// is read, which begins it. Counts that no command was needed.
    pub(in crate::cache::verbs) fn near_value<V: Send + Sync + 'static>(
        &self,
        want: Want,
    ) -> Option<Arc<V>> {
        let setup = &self.cache.setup;
        let (near, client, key) = (
            setup.near.as_ref()?,
            &self.cache.client,
            self.value.as_str(),
        );
        let hit = match want.early() {
            None => near.hit(client, key),
            // While this process loads it, nothing is begun by another read.
            Some(draws) => near.hit_early(client, key, draws, || {
                self.cache.state().refreshing.is_under_way(&self.value)
            }),
        };
        match hit? {
            NearHit::Value(value) => {
                setup.counts.near_hits.one_more();
                Some(value)
            }
            // Loaded as if it were not known: the lease is asked for in any case.
            NearHit::Absent => None,
        }
    }

    /// Returns the value that the near cache holds although the read has failed: one whose early
    /// refresh is due, or one that it may serve because the server is out. Counts it.
    pub(super) fn held_yet<V: Send + Sync + 'static>(&self, error: &Error) -> Option<Arc<V>> {
        self.near_value(Want::STALE)
            .or_else(|| self.in_grace(error))
    }

    /// Returns the value that the near cache may serve because the server is out, and counts it.
    pub(super) fn in_grace<V: Send + Sync + 'static>(&self, error: &Error) -> Option<Arc<V>> {
        match self.cache.known_in_grace(&self.value, error)? {
            NearHit::Value(value) => {
                self.cache.setup.counts.near_grace.one_more();
                Some(value)
            }
            // Loaded, if that is possible.
            NearHit::Absent => None,
        }
    }
}
