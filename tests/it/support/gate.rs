//! Loads that take as long as a test wants them to.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::support::wait::until;

/// Counts loads and holds each until it is let go.
#[derive(Clone)]
pub struct Gate {
    begun: Arc<AtomicUsize>,
    open: Arc<Semaphore>,
}

impl Gate {
    pub fn closed() -> Self {
        Self {
            begun: Arc::default(),
            open: Arc::new(Semaphore::new(0)),
        }
    }

    /// Lets one load through.
    pub fn open(&self) {
        self.open.add_permits(1);
    }

    pub async fn load<V>(self, value: V) -> Result<V, Infallible> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.open.acquire().await.expect("never closed").forget();
        Ok(value)
    }

    pub fn loads(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub async fn begun(&self, loads: usize) {
        until("a load begins", async || self.loads() >= loads).await;
    }
}
