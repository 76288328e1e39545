//! `LoadsUnderWay`: how many loads of a client have not ended.
//!
//! Invariant: a load counts from before its task is spawned until the task is dropped, so also
//! while it commits and gives its lease up. `Client::close` waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(in crate::cache) struct LoadsUnderWay(AtomicUsize);

/// One load, until this is dropped.
#[derive(Debug)]
pub(super) struct LoadUnderWay(Arc<LoadsUnderWay>);

impl LoadsUnderWay {
    pub(super) fn begin(self: &Arc<Self>) -> LoadUnderWay {
        self.0.fetch_add(1, Ordering::SeqCst);
        LoadUnderWay(self.clone())
    }

    pub(in crate::cache) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for LoadUnderWay {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}
