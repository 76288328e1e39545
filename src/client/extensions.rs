//! `Extensions`: what the primitives share among all handles of a client, one value of each type.
//!
//! Invariant: the value of a type is made once and lives as long as the client. With this, the
//! client need not know any of the primitives. Locks, caches and others call it through
//! `Client::shared`.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Default)]
pub(super) struct Extensions(Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>);

impl Extensions {
    /// Returns the value of type `T`. `make` makes it on first use.
    pub(super) fn shared<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        // `make` runs under the lock, so that no type gets two values.
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(make()));
        match value.clone().downcast() {
            Ok(value) => value,
            Err(_) => unreachable!("values are filed under their own type"),
        }
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extensions(..)")
    }
}
