//! `ScatterRead`: one read whose keys several servers hold.
//!
//! A part is what one server is asked for. Each part waits in the queue of its server, and the
//! batches there report to this.
//!
//! Invariant: the reader is woken once, when the last server has answered or the first has failed.
//!
//! [`Pipeliner::gather`](super::pipeliner::Pipeliner::gather) makes it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::replies::{KeyReplies, KeyReply, Reply};
use crate::error::{Error, Result};
use crate::key::Key;

/// The keys of the read, and the answers so far.
#[derive(Debug)]
pub(crate) struct ScatterRead {
    keys: Vec<Key>,
    /// The part that each key belongs to.
    parts: Vec<usize>,
    // The servers answer at the same time, on different tasks.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The answers by key; `None` where none has come.
    cells: Vec<Option<KeyReply>>,
    /// How many answers have not come.
    missing: usize,
    /// Taken by the part that completes the read, or that fails first.
    reply: Option<Reply<KeyReplies, KeyError>>,
}

/// The index of a key that could not be read, and why.
pub(crate) type KeyError = (usize, Error);

impl ScatterRead {
    pub(crate) fn new(
        keys: Vec<Key>,
        parts: Vec<usize>,
        reply: Reply<KeyReplies, KeyError>,
    ) -> Self {
        let state = State {
            cells: vec![None; keys.len()],
            missing: keys.len(),
            reply: Some(reply),
        };
        Self {
            keys,
            parts,
            state: Mutex::new(state),
        }
    }

    /// The keys of a part.
    pub(crate) fn keys(&self, part: usize) -> impl Iterator<Item = &Key> {
        let keys = self.keys.iter().zip(&self.parts);
        keys.filter_map(move |(key, of)| (*of == part).then_some(key))
    }

    /// Takes the answer of one server: the replies for the keys of its part.
    pub(crate) fn answered(&self, part: usize, cells: impl Iterator<Item = KeyReply>) {
        let mut state = self.state();
        let State {
            cells: all,
            missing,
            ..
        } = &mut *state;
        let places = all.iter_mut().zip(&self.parts);
        let places = places.filter_map(|(place, of)| (*of == part).then_some(place));
        for (place, cell) in places.zip(cells) {
            *place = Some(cell);
            *missing = missing.saturating_sub(1);
        }
        if state.missing == 0 {
            let cells = std::mem::take(&mut state.cells);
            Self::end(state, Ok(cells.into_iter().flatten().collect()));
        }
    }

    /// Fails the read, because a part failed.
    pub(crate) fn refuse(&self, part: usize, error: Error) {
        Self::end(self.state(), Err((self.first(part), error)));
    }

    /// The index of the first key of a part.
    pub(crate) fn first(&self, part: usize) -> usize {
        let place = self.parts.iter().position(|of| *of == part);
        place.unwrap_or_default()
    }

    /// The index of a key that has no answer.
    pub(crate) fn missing(&self) -> usize {
        let missing = self.state().cells.iter().position(Option::is_none);
        missing.unwrap_or_default()
    }

    /// Whether the reader has left, or has its outcome already.
    pub(crate) fn is_over(&self) -> bool {
        self.state().reply.as_ref().is_none_or(Reply::is_closed)
    }

    /// Answers the reader, unless it has an answer already.
    fn end(mut state: MutexGuard<'_, State>, outcome: Result<KeyReplies, KeyError>) {
        let reply = state.reply.take();
        // Sending wakes the reader, which must not find the lock taken.
        drop(state);
        if let Some(reply) = reply {
            let _ = reply.send(outcome);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
