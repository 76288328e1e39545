//! The cache and its tags against a model, with any sequence of calls over a few keys and tags.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::LazyLock;
use std::time::Duration;

use hedgerow::{Cache, Client};
use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::support::server::Server;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
enum Call {
    Get(u8),
    Memoize(u8, BTreeSet<u8>),
    Set(u8, BTreeSet<u8>),
    Remove(u8),
    Invalidate(BTreeSet<u8>),
    Clear,
    /// A load begins; the calls up to the matching end meet it under way.
    BeginLoad(u8, BTreeSet<u8>),
    EndLoad,
}

fn call() -> impl Strategy<Value = Call> {
    let key = || 0..3u8;
    let tags = || proptest::collection::btree_set(0..3u8, 0..3);
    prop_oneof![
        3 => key().prop_map(Call::Get),
        3 => (key(), tags()).prop_map(|(key, tags)| Call::Memoize(key, tags)),
        2 => (key(), tags()).prop_map(|(key, tags)| Call::Set(key, tags)),
        1 => key().prop_map(Call::Remove),
        2 => tags().prop_map(Call::Invalidate),
        1 => Just(Call::Clear),
        2 => (key(), tags()).prop_map(|(key, tags)| Call::BeginLoad(key, tags)),
        2 => Just(Call::EndLoad),
    ]
}

/// What a correct cache holds.
#[derive(Debug, Default)]
struct Model {
    values: BTreeMap<u8, (u64, BTreeSet<u8>)>,
}

/// A load under way.
struct Loading {
    key: u8,
    tags: BTreeSet<u8>,
    version: u64,
    /// The key was removed or set, so it will not be stored at all.
    ended: bool,
    /// A tag was invalidated or the cache cleared, so it will be stored and not be valid.
    dead: bool,
    finish: tokio::sync::oneshot::Sender<()>,
    result: tokio::task::JoinHandle<hedgerow::Result<u64>>,
}

/// One case: a cache of its own, reached through two clients by turns.
struct Case {
    caches: [Cache; 2],
    /// Tags are shared by all caches: those of this case begin so.
    prefix: String,
    model: Model,
    loading: Option<Loading>,
    version: u64,
}

impl Case {
    fn new(clients: &[Client; 2]) -> Self {
        let prefix = format!("case-{:016x}", rand::random::<u64>());
        Self {
            caches: [clients[0].cache(&prefix), clients[1].cache(&prefix)],
            prefix,
            model: Model::default(),
            loading: None,
            version: 0,
        }
    }

    fn tags(&self, tags: &BTreeSet<u8>) -> Vec<String> {
        let name = |tag: &u8| format!("{}-{tag}", self.prefix);
        tags.iter().map(name).collect()
    }

    async fn play(&mut self, step: usize, call: Call) -> Result<(), TestCaseError> {
        let cache = self.caches[step % 2].clone();
        self.version += 1;
        let version = self.version;
        match call {
            Call::Get(key) => {
                let found = cache.get::<u64>(&key.to_string()).await.expect("an answer");
                let expected = self.model.values.get(&key).map(|(version, _)| *version);
                prop_assert_eq!(found.map(|found| *found), expected);
            }
            // It would wait for the load under way.
            Call::Memoize(key, _) if self.loading.as_ref().is_some_and(|it| it.key == key) => {}
            Call::Memoize(key, tags) => {
                let load = async move || Ok::<_, Infallible>(version);
                let call = cache.memoize(&key.to_string(), MINUTE, load);
                let value = call.tags(self.tags(&tags)).await.expect("a value");
                let (expected, _) = self.model.values.entry(key).or_insert((version, tags));
                prop_assert_eq!(*value, *expected);
            }
            Call::Set(key, tags) => {
                let call = cache.set(&key.to_string(), &version, MINUTE);
                call.tags(self.tags(&tags)).await.expect("stored");
                self.model.values.insert(key, (version, tags));
                self.ended(key);
            }
            Call::Remove(key) => {
                cache.remove(&key.to_string()).await.expect("removed");
                self.model.values.remove(&key);
                self.ended(key);
            }
            Call::Invalidate(tags) => {
                let names = self.tags(&tags);
                cache.invalidate_tags(names).await.expect("invalidated");
                let carries = |carried: &BTreeSet<u8>| !carried.is_disjoint(&tags);
                self.model
                    .values
                    .retain(|_, (_, carried)| !carries(carried));
                if let Some(load) = &mut self.loading {
                    load.dead |= carries(&load.tags);
                }
            }
            Call::Clear => {
                cache.clear().await.expect("cleared");
                self.model.values.clear();
                if let Some(load) = &mut self.loading {
                    load.dead = true;
                }
            }
            Call::BeginLoad(key, tags) => {
                if self.loading.is_none() && !self.model.values.contains_key(&key) {
                    self.begin(&cache, key, tags).await;
                }
            }
            Call::EndLoad => self.end().await?,
        }
        Ok(())
    }

    fn ended(&mut self, key: u8) {
        if let Some(load) = self.loading.as_mut().filter(|load| load.key == key) {
            load.ended = true;
        }
    }

    /// Returns when the loader runs.
    async fn begin(&mut self, cache: &Cache, key: u8, tags: BTreeSet<u8>) {
        let version = self.version;
        let (begun, running) = tokio::sync::oneshot::channel();
        let (finish, finished) = tokio::sync::oneshot::channel();
        let load = move || async move {
            begun.send(()).expect("the case waits");
            let _ = finished.await;
            Ok::<_, Infallible>(version)
        };
        let call = cache.memoize(&key.to_string(), MINUTE, load);
        let call = call.tags(self.tags(&tags));
        let result = tokio::spawn(async move { call.await.map(|value| *value) });
        running.await.expect("the loader runs");
        self.loading = Some(Loading {
            key,
            tags,
            version,
            ended: false,
            dead: false,
            finish,
            result,
        });
    }

    async fn end(&mut self) -> Result<(), TestCaseError> {
        let Some(load) = self.loading.take() else {
            return Ok(());
        };
        load.finish.send(()).expect("the loader waits");
        let value = load.result.await.expect("no panic").expect("its own load");
        prop_assert_eq!(value, load.version, "a caller gets what its own load found");
        if !load.ended && !load.dead {
            self.model
                .values
                .insert(load.key, (load.version, load.tags));
        }
        Ok(())
    }
}

/// One warm server for all cases.
static WORLD: LazyLock<(Runtime, Server, [Client; 2])> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("a runtime");
    let (server, clients) = runtime.block_on(async {
        let server = Server::start().await;
        let clients = [server.client().await, server.client().await];
        (server, clients)
    });
    (runtime, server, clients)
});

proptest! {
    #[test]
    fn the_cache_answers_as_its_model_does(calls in proptest::collection::vec(call(), 1..40)) {
        let (runtime, server, clients) = &*WORLD;
        runtime.block_on(async {
            let mut case = Case::new(clients);
            for (step, call) in calls.into_iter().enumerate() {
                case.play(step, call).await?;
            }
            case.end().await?;
            for key in 0..3 {
                case.play(key.into(), Call::Get(key)).await?;
            }
            let leases = server.keys(&format!("hr:l:{{{}:*", case.prefix)).await;
            prop_assert!(leases.is_empty(), "{:?}", leases);
            Ok(())
        })?;
    }
}
