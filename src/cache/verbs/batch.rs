//! `Batch`: the loads of one `memoize_many` that one call of its loader makes.
//!
//! Invariant: the loader is called once for all loads that lead when the gathering is complete, and
//! once for each load that leads later. Each of the loads polls the one call, so it goes on as long
//! as one of them does, and ends with the last. `memoize_many` makes batches.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

use crate::cache::config::CacheState;
use crate::cache::load::flights::LoadChain;
use crate::cache::load::gather::{Gather, Member};
use crate::cache::load::loading::RunLoader;
use crate::error::loader::Captured;
use crate::key::Key;

/// The user's function, its errors captured.
pub(super) type LoadMany<V> =
    Arc<dyn Fn(Vec<String>) -> BoxFuture<'static, Loaded<V>> + Send + Sync>;

/// What one call of it comes to.
pub(super) type Loaded<V> = std::result::Result<HashMap<String, V>, Captured>;

/// The loads of one call that are made together.
pub(super) struct Batch<V> {
    pub(super) gather: Arc<Gather>,
    pub(super) loader: LoadMany<V>,
    pub(super) state: Arc<CacheState>,
    /// How long the loads wait for one that does not decide. A load that comes later is made by a
    /// call of its own.
    pub(super) pause: Duration,
    /// How long the loads wait for each other at the longest.
    pub(super) limit: Duration,
    /// The Redis keys by the names, for the loads that the loader may ask for.
    pub(super) places: HashMap<String, Key>,
    pub(super) together: Mutex<Together<V>>,
}

/// The call of the loader for the loads that lead together.
pub(super) enum Together<V> {
    NotCalled,
    /// With the number of loads that have not taken it yet. Once all have, they alone keep it, so
    /// that it is dropped with the last of them.
    Called(Shared<Call<V>>, usize),
    Taken,
}

/// `None` if the loader has panicked.
type Call<V> = BoxFuture<'static, Option<std::result::Result<Arc<Values<V>>, Captured>>>;

/// The values by their names, for several loads.
type Values<V> = HashMap<String, Arc<V>>;

impl<V: Send + Sync + 'static> Batch<V> {
    /// Returns what runs the loader for the key of this member. `wrap` makes the value
    /// of the load of what was loaded, which is `None` if the loader has left the key out.
    pub(super) fn loader_of<T: 'static>(
        self: &Arc<Self>,
        member: Arc<Member>,
        wrap: fn(Option<Arc<V>>) -> T,
    ) -> RunLoader<T> {
        let batch = self.clone();
        Box::new(move |loading| {
            let fence = loading.fence();
            async move {
                let key = member.key().to_owned();
                let call = match member.leads(fence) {
                    true => batch.called().await,
                    false => None,
                };
                drop(member);
                let values = match call {
                    Some(call) => match call.await {
                        Some(values) => values?,
                        // As it would have been without the others: the panic is caught around each
                        // load.
                        None => resume_unwind(Box::new("the loader of the batch has panicked")),
                    },
                    // It leads later than the others, with permits of its own.
                    None => shared((batch.loader)(vec![key.clone()]).await?),
                };
                Ok(wrap(values.get(&key).cloned()))
            }
            .boxed()
        })
    }

    /// Returns the call of the loader for all loads that lead, once they have decided. Each of them
    /// takes it once.
    async fn called(self: &Arc<Self>) -> Option<Shared<Call<V>>> {
        let (keys, unleased) = self.gather.complete(self.pause, self.limit).await;
        let leading = keys.len();
        let mut together = self.together.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*together, Together::NotCalled) {
            return together.take();
        }
        let others = keys.iter().filter_map(|key| self.places.get(key).cloned());
        let others: HashSet<Key> = others.collect();
        let (gather, state) = (self.gather.clone(), self.state.clone());
        let (loader, permit) = (self.loader.clone(), self.gather.take_permit());
        // The user's code runs when this is polled, and no lock is held then.
        let load = async move {
            let _permit = permit;
            let _place = match unleased {
                // One permit for all of them. A load that has one may wait for this batch.
                true => tokio::select! {
                    place = state.bulkhead.place() => place,
                    () = gather.urged() => None,
                },
                false => None,
            };
            loader(keys).await
        };
        let load = LoadChain::with_others(others, load);
        // A panic within a shared future would wake nobody.
        let load = AssertUnwindSafe(load).catch_unwind();
        let load = load.map(|loaded| loaded.ok().map(|loaded| loaded.map(shared)));
        let call = load.boxed().shared();
        *together = Together::Called(call, leading);
        together.take()
    }
}

impl<V> Together<V> {
    fn take(&mut self) -> Option<Shared<Call<V>>> {
        match self {
            Self::Called(call, left) if *left > 1 => {
                *left -= 1;
                Some(call.clone())
            }
            _ => match std::mem::replace(self, Self::Taken) {
                Self::Called(call, _) => Some(call),
                Self::NotCalled | Self::Taken => None,
            },
        }
    }
}

fn shared<V>(values: HashMap<String, V>) -> Arc<Values<V>> {
    let values = values
        .into_iter()
        .map(|(key, value)| (key, Arc::new(value)));
    Arc::new(values.collect())
}
