//! `ScatterRead`: one read whose keys several servers hold.
//!
//! Invariant: the reader is woken once, when the last server has answered or the first has failed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::replies::{KeyReplies, KeyReply, Reply};
use crate::error::{Error, Result};
use crate::key::Key;

/// What is known so far.
#[derive(Debug)]
pub(crate) struct ScatterRead {
    keys: Vec<Key>,
    /// Which part of the read each key belongs to; a part is what one server is asked for.
    parts: Vec<usize>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` where no answer has come.
    cells: Vec<Option<KeyReply>>,
    missing: usize,
    /// Taken by whoever completes the read, or ends it.
    reply: Option<Reply<KeyReplies, KeyError>>,
}

/// A place of the read that could not be read, and why.
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

    /// Takes the answer of one server: the cells of its keys.
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

    pub(crate) fn refuse(&self, part: usize, error: Error) {
        Self::end(self.state(), Err((self.first(part), error)));
    }

    /// The first place of a part.
    pub(crate) fn first(&self, part: usize) -> usize {
        let place = self.parts.iter().position(|of| *of == part);
        place.unwrap_or_default()
    }

    /// A place that has not been answered.
    pub(crate) fn missing(&self) -> usize {
        let missing = self.state().cells.iter().position(Option::is_none);
        missing.unwrap_or_default()
    }

    /// Nobody waits for the outcome any more, or it is known already.
    pub(crate) fn is_over(&self) -> bool {
        self.state().reply.as_ref().is_none_or(Reply::is_closed)
    }

    fn end(mut state: MutexGuard<'_, State>, outcome: Result<KeyReplies, KeyError>) {
        let reply = state.reply.take();
        drop(state);
        if let Some(reply) = reply {
            let _ = reply.send(outcome);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
