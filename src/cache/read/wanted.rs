//! What one read asks for: the keys of entries and of tags, on one ring, and where each answer is.
//!
//! Invariant: the tag of the whole cache is asked for once in each slot group, and on the ring of
//! its entries. `fetch` makes one for each read of entries, and finds the answers by it.

use bytes::Bytes;

use crate::client::Client;
use crate::key::Key;
use crate::tags::Tag;

/// The ring of shards that places a key, while keys move from one ring to another.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ring {
    Own,
    Other,
}

impl Ring {
    pub(super) fn place(self, key: &Key) -> Key {
        match self {
            Self::Own => key.clone(),
            Self::Other => key.on_other_ring(),
        }
    }
}

/// The tags whose generations are read together with an entry.
#[derive(Clone, Copy)]
pub(super) struct Asked<'t> {
    /// `None` for bare values, which carry no tags.
    pub(super) whole: Option<&'t Tag>,
    pub(super) declared: &'t [Tag],
}

/// The keys of one read: entries, then the tag of the whole cache, then the declared tags.
pub(super) struct Wanted {
    pub(super) keys: Vec<Key>,
    entries: usize,
    /// The tag of the whole cache has one key in each slot group. This is how many of these keys
    /// are read.
    wholes: usize,
    /// Which of these keys belongs to which entry. Empty if all entries have the same, as on one
    /// server, so that the usual read needs no memory for it.
    whole_of: Vec<usize>,
}

impl Wanted {
    pub(super) fn new(client: &Client, tags: Asked<'_>, keys: &[Key], ring: Ring) -> Self {
        let Asked { whole, declared } = tags;
        let entries = keys.len();
        let mut all = Vec::with_capacity(entries + 1 + declared.len());
        all.extend(keys.iter().map(|key| ring.place(key)));
        let mut whole_of = Vec::new();
        // The keys of the whole cache's tag follow the entries, each of them once.
        for (at, whole) in (0..entries).flat_map(|at| whole.map(|whole| (at, whole))) {
            let own = whole.colocated_key(client, &all[at]);
            let known = all[entries..].iter().position(|known| *known == own);
            let place = known.unwrap_or(all.len() - entries);
            if known.is_none() {
                all.push(own);
            }
            if place > 0 && whole_of.is_empty() {
                whole_of.resize(at, 0);
            }
            if place > 0 || !whole_of.is_empty() {
                whole_of.push(place);
            }
        }
        let wholes = all.len() - entries;
        all.extend(declared.iter().map(|tag| ring.place(&tag.key)));
        Self {
            keys: all,
            entries,
            wholes,
            whole_of,
        }
    }

    /// Returns the order of what was read by other means: one entry, the tag of the whole cache if
    /// it was `asked` for, the declared tags. It asks for nothing, so it has no keys.
    pub(super) fn answered(key: &Key, asked: Asked<'_>) -> Self {
        Self {
            keys: vec![key.clone()],
            entries: 1,
            wholes: usize::from(asked.whole.is_some()),
            whole_of: Vec::new(),
        }
    }

    /// The present generation of the whole cache's tag for the entry `at`, in what was found.
    pub(super) fn whole<'f>(&self, at: usize, found: &'f [Option<Bytes>]) -> Option<&'f Bytes> {
        let whole = self.whole_of.get(at).copied().unwrap_or_default();
        found[self.entries + whole].as_ref()
    }

    /// Whether the entry `at` is read at the key `place`, or judged by the tag there.
    pub(super) fn is_needed(&self, at: usize, place: usize) -> bool {
        let tags = self.entries + self.wholes;
        let whole = self.entries + self.whole_of.get(at).copied().unwrap_or_default();
        place == at || place >= tags || place >= self.entries && place == whole
    }

    pub(super) fn declared<'f>(&self, found: &'f [Option<Bytes>]) -> &'f [Option<Bytes>] {
        &found[self.entries + self.wholes..]
    }
}
