//! `UnderWay`: which pages this process renders now.
//!
//! Invariant: a page is under way while a [`Rendering`] of it lives. Renders make them, and
//! attempts ask.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The pages under way, and how often each.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<HashMap<Arc<str>, usize>>);

/// A render under way.
#[derive(Debug)]
pub(super) struct Rendering {
    all: Arc<UnderWay>,
    key: Arc<str>,
}

impl UnderWay {
    pub(super) fn begin(self: &Arc<Self>, key: Arc<str>) -> Rendering {
        *self.renders().entry(key.clone()).or_default() += 1;
        let all = self.clone();
        Rendering { all, key }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.renders().contains_key(key)
    }

    fn renders(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Rendering {
    fn drop(&mut self) {
        let mut renders = self.all.renders();
        if let Some(count) = renders.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                renders.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_under_way_until_all_its_renders_have_ended() {
        let all = Arc::new(UnderWay::default());
        let first = all.begin("a".into());
        let second = all.begin("a".into());
        drop(first);
        assert!(all.has("a") && !all.has("b"));
        drop(second);
        assert!(!all.has("a"));
        assert!(all.renders().is_empty());
    }
}
