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
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    cells: Cells,
    missing: usize,
    /// Taken by whoever completes the read, or ends it.
    reply: Option<Reply<Cells>>,
}

impl Gather {
    pub(super) fn new(keys: Vec<Key>, reply: Reply<Cells>) -> Self {
        let state = State {
            cells: vec![Ok(None); keys.len()],
            missing: keys.len(),
            reply: Some(reply),
        };
        Self {
            keys,
            state: Mutex::new(state),
        }
    }

    /// Takes the answer of one server: a cell for each of the places that it was asked for.
    pub(super) fn answered(&self, part: Result<impl Iterator<Item = (usize, Cell)>>) {
        let mut state = self.state();
        let outcome = match part {
            Ok(part) => {
                for (place, cell) in part {
                    state.cells[place] = cell;
                    state.missing -= 1;
                }
                if state.missing > 0 {
                    return;
                }
                Ok(std::mem::take(&mut state.cells))
            }
            Err(error) => Err(error),
        };
        let reply = state.reply.take();
        drop(state);
        if let Some(reply) = reply {
            let _ = reply.send(outcome);
        }
    }

    pub(super) fn refuse(&self, error: Error) {
        self.answered(Err::<std::iter::Empty<_>, _>(error));
    }

    /// Nobody waits for the outcome any more, or it is known already.
    pub(super) fn is_over(&self) -> bool {
        self.state().reply.as_ref().is_none_or(Reply::is_closed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
