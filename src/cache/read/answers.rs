//! `Answers`: what the servers have answered to one read of entries, judged entry by entry.
//!
//! Invariant: an entry is judged by generations that were read together with it or after it, and by
//! the life of its key as it was before the entry was read, or when it was. `fetch` reads and fills
//! in readings.

use bytes::Bytes;

use super::judge::{Judged, Left, Rules, Taken, Want, Why, judge};
use super::reading::{Gone, Miss, Reading, snapshot};
use super::wanted::{Asked, Wanted};
use crate::codec::Stack;
use crate::error::{Error, Result};
use crate::key::TagId;
use crate::net::pipeline::replies::Values;
use crate::tags::TagValue;

/// What was asked, and what was answered.
pub(super) struct Answers<'t> {
    pub(super) wanted: Wanted,
    pub(super) tags: Asked<'t>,
    pub(super) found: Values,
    /// The keys that could not be read, by their positions. Empty but for a read that goes on
    /// without them.
    pub(super) lost: Vec<(usize, Error)>,
    /// How long each entry still lives. Empty if that was not asked.
    pub(super) left: Vec<Left>,
    pub(super) want: Want,
    pub(super) stack: &'t Stack,
}

/// The entries that are no hit so far, by their positions.
#[derive(Default)]
pub(super) struct Undecided {
    pub(super) missed: Vec<(usize, Why)>,
    /// Entries that are to be loaded anew. Their readings still lack what the load must know.
    pub(super) old: Vec<usize>,
    /// How long they still live decides.
    pub(super) untimed: Vec<usize>,
    /// With the tags whose generations decide.
    pub(super) needing: Vec<(usize, Vec<TagId>)>,
}

/// The place of the reading of an entry. It is an error if the entry could not be read, in a read
/// that goes on without it.
pub(super) type Place<T> = Option<Result<Reading<T>>>;

/// What tags hold that were not read together with the entries.
#[derive(Default)]
pub(super) struct Others {
    /// In the order of the tags.
    pub(super) found: Vec<(TagId, Option<Bytes>)>,
    /// Those that could not be read, as in [`Answers::lost`].
    pub(super) lost: Vec<(TagId, Error)>,
}

impl Undecided {
    pub(super) fn is_empty(&self) -> bool {
        self.missed.is_empty()
            && self.old.is_empty()
            && self.untimed.is_empty()
            && self.needing.is_empty()
    }

    /// Fills in `reading`, or notes what is still to be done for it.
    fn note<T>(&mut self, at: usize, judged: Judged<T>, reading: &mut Place<T>) {
        match judged {
            Judged::Hit(taken) => *reading = Some(Ok(Reading::Hit(taken))),
            Judged::Old(old) => {
                *reading = Some(Ok(Reading::Old(old, Miss::default())));
                self.old.push(at);
            }
            Judged::Miss(why) => self.missed.push((at, why)),
            Judged::Needs(tags) => self.needing.push((at, tags)),
            Judged::NeedsTime => self.untimed.push(at),
        }
    }
}

impl Answers<'_> {
    /// Judges the entries, and fills in the readings of those that are decided.
    pub(super) fn judged<T: Taken>(&self, readings: &mut [Place<T>]) -> Undecided {
        let mut open = Undecided::default();
        for (at, reading) in readings.iter_mut().enumerate() {
            match self.lost(at) {
                None => open.note(at, self.judge(at, &[]), reading),
                Some(error) => *reading = Some(Err(error.clone())),
            }
        }
        open
    }

    /// Why the entry `at` cannot be judged, if it or a tag that was asked for with it could not be
    /// read.
    fn lost(&self, at: usize) -> Option<&Error> {
        let mut lost = self.lost.iter();
        let lost = lost.find(|(place, _)| self.wanted.is_needed(at, *place));
        lost.map(|(_, error)| error)
    }

    /// Judges the entries again that need other tags, which are here now: only once, since an entry
    /// names all its tags.
    pub(super) fn judged_again<T: Taken>(
        &self,
        open: &mut Undecided,
        others: &Others,
        readings: &mut [Place<T>],
    ) {
        for (at, tags) in std::mem::take(&mut open.needing) {
            let mut lost = others.lost.iter();
            if let Some((_, error)) = lost.find(|(tag, _)| tags.contains(tag)) {
                readings[at] = Some(Err(error.clone()));
                continue;
            }
            match self.judge(at, &others.found) {
                Judged::Needs(_) => {
                    debug_assert!(false, "all that an entry needs was read");
                    open.missed.push((at, Why::Invalidated));
                }
                judged => open.note(at, judged, &mut readings[at]),
            }
        }
    }

    fn judge<T: Taken>(&self, at: usize, others: &[(TagId, Option<Bytes>)]) -> Judged<T> {
        let Asked { whole, declared } = self.tags;
        let known = |tag: TagId| {
            if whole.is_some_and(|whole| whole.id == tag) {
                return Some(TagValue::of(self.wanted.whole(at, &self.found)));
            }
            if let Some(place) = declared.iter().position(|it| it.id == tag) {
                let value = self.wanted.declared(&self.found)[place].as_ref();
                return Some(TagValue::of(value));
            }
            // They are in order, since each was asked for once.
            let other = others.binary_search_by_key(&tag, |(id, _)| *id).ok()?;
            Some(TagValue::of(others[other].1.as_ref()))
        };
        let key = self.wanted.keys[at].as_str();
        let rules = Rules {
            whole: whole.map(|whole| whole.id),
            want: self.want,
            draw: self.want.early().map(|draws| draws.of(key)),
            left: self.left.get(at).copied().unwrap_or(Left::Unread),
        };
        let decoder = self.stack.decoder(key);
        judge(self.found[at].as_deref(), rules, known, &decoder)
    }

    /// The bytes of the entry `at`. Empty if there is none.
    pub(super) fn entry(&self, at: usize) -> &[u8] {
        self.found[at].as_deref().unwrap_or_default()
    }

    /// What a load of the entry `at` must know.
    pub(super) fn miss(&self, at: usize, gone: Gone) -> Miss {
        let whole = self.tags.whole.map(|_| {
            let value = self.wanted.whole(at, &self.found);
            TagValue::of(value).map(TagValue::state)
        });
        let declared = snapshot(self.wanted.declared(&self.found));
        let seen = self.stack.recognised_by(self.found[at].as_deref());
        Miss::of((gone, seen, self.others(at)), whole, declared)
    }

    /// The tags of the entry `at` that were not asked for. None of an entry that cannot be read.
    fn others(&self, at: usize) -> Box<[TagId]> {
        let decoder = self.stack.decoder(self.wanted.keys[at].as_str());
        let entry = self.found[at].as_deref();
        let Some(Ok(envelope)) = entry.map(|entry| decoder.parse(entry)) else {
            return Box::default();
        };
        let Asked { whole, declared } = self.tags;
        let asked = |tag: &TagId| {
            whole
                .iter()
                .copied()
                .chain(declared)
                .any(|it| it.id == *tag)
        };
        let tags = envelope.stamps().map(|stamp| TagId(stamp.tag));
        tags.filter(|tag| !asked(tag)).collect()
    }
}
