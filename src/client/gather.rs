//! `Gather`: one read whose keys several servers hold.
//!
//! Invariant: the reader is woken once, when the last server has answered or the first has failed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::cells::{Cell, Cells};
use super::lane::Reply;
use crate::error::{Error, Result};
use crate::key::Key;

/// What is known so far.
#[derive(Debug)]
pub(super) struct Gather {
    pub(super) keys: Vec<Key>,
    /// Which places of `keys` each server is asked for; each for one at least.
    pub(super) parts: Vec<Vec<usize>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    cells: Cells,
    /// Which parts have not been answered.
    missing: Vec<usize>,
    /// Taken by whoever completes the read, or ends it.
    reply: Option<Reply<Cells, PlaceError>>,
}

/// A place of the read that could not be read, and why.
pub(crate) type PlaceError = (usize, Error);

impl Gather {
    pub(super) fn new(
        keys: Vec<Key>,
        parts: Vec<Vec<usize>>,
        reply: Reply<Cells, PlaceError>,
    ) -> Self {
        let state = State {
            cells: vec![Ok(None); keys.len()],
            missing: (0..parts.len()).collect(),
            reply: Some(reply),
        };
        Self {
            keys,
            parts,
            state: Mutex::new(state),
        }
    }

    /// Takes the answer of one server: a cell for each of the places that it was asked for.
    pub(super) fn answered(&self, part: usize, cells: impl Iterator<Item = Cell>) {
        let mut state = self.state();
        for (&place, cell) in self.parts[part].iter().zip(cells) {
            state.cells[place] = cell;
        }
        state.missing.retain(|missing| *missing != part);
        if state.missing.is_empty() {
            let cells = std::mem::take(&mut state.cells);
            Self::end(state, Ok(cells));
        }
    }

    pub(super) fn refuse(&self, part: usize, error: Error) {
        Self::end(self.state(), Err((self.parts[part][0], error)));
    }

    /// A place that has not been answered.
    pub(super) fn missing(&self) -> usize {
        let missing = self.state().missing.first().copied();
        missing.map_or(0, |part| self.parts[part][0])
    }

    /// Nobody waits for the outcome any more, or it is known already.
    pub(super) fn is_over(&self) -> bool {
        self.state().reply.as_ref().is_none_or(Reply::is_closed)
    }

    fn end(mut state: MutexGuard<'_, State>, outcome: Result<Cells, PlaceError>) {
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
