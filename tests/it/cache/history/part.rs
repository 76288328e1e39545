//! The part of one process in a world: it reads and invalidates as its plan says, and tells the
//! truth of it.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow::cache::{Loading, NearCache};
use hedgerow::{Cache, Client, Error, ErrorKind, Outage};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::check::KeyNumber;
use super::plan::{By, COLD, KEYS, LONG, LoadPlan, Plan, ReadPlan, SHORT, Terms, Way, WritePlan};
use super::plan::{GROUPS, may_raise};
use super::truth::{Line, joined};

/// What a process is started with.
#[derive(Debug, Clone)]
pub struct Script {
    /// One server, or several of a cluster.
    pub urls: Vec<String>,
    pub truth: PathBuf,
    pub cache: String,
    pub process: usize,
    /// The number of this client: another one after a restart.
    pub client: u32,
    pub terms: Terms,
}

/// What the world is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Busy,
    /// Nothing is invalidated, and cold keys are not read.
    Quiet,
    /// Nothing is invalidated; each key is read in all ways.
    Last,
    Over,
}

/// What a process has done, in words and back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deeds {
    pub near_hits: u64,
    pub stale_served: u64,
    pub refused: u64,
    pub shared: u64,
    /// Reads whose callers left.
    pub left: u64,
    /// Reads that Redis failed.
    pub failed: u64,
    /// Values that were stored by `update` or `update_with`.
    pub updated: u64,
}

impl Script {
    pub fn words(&self) -> Vec<String> {
        let Terms {
            near,
            windows,
            network,
            seed,
        } = self.terms;
        vec![
            self.urls.join(","),
            self.truth.display().to_string(),
            self.cache.clone(),
            self.process.to_string(),
            self.client.to_string(),
            format!("{near} {windows} {network} {seed}"),
        ]
    }

    pub fn of(words: &[String]) -> Self {
        let terms: Vec<&str> = words[5].split(' ').collect();
        Self {
            urls: words[0].split(',').map(str::to_owned).collect(),
            truth: words[1].clone().into(),
            cache: words[2].clone(),
            process: words[3].parse().expect("a number"),
            client: words[4].parse().expect("a number"),
            terms: Terms {
                near: terms[0] == "true",
                windows: terms[1] == "true",
                network: terms[2] == "true",
                seed: terms[3].parse().expect("a number"),
            },
        }
    }
}

impl Deeds {
    pub fn words(&self) -> String {
        let all = [self.near_hits, self.stale_served, self.refused];
        let others = [self.shared, self.left, self.failed, self.updated];
        joined(all.into_iter().chain(others))
    }

    pub fn add(&mut self, words: &str) {
        let all = [
            &mut self.near_hits,
            &mut self.stale_served,
            &mut self.refused,
            &mut self.shared,
            &mut self.left,
            &mut self.failed,
            &mut self.updated,
        ];
        for (sum, word) in all.into_iter().zip(words.split(' ')) {
            *sum += word.parse::<u64>().expect("a number");
        }
    }
}

/// A process that plays its part.
pub struct Part {
    actor: Arc<Actor>,
    phase: watch::Sender<Phase>,
    tasks: JoinSet<()>,
}

struct Actor {
    script: Script,
    strict: Cache,
    /// The same, with a near cache if the world has them.
    cache: Cache,
    left: AtomicUsize,
    failed: AtomicUsize,
    updated: AtomicUsize,
}

impl Part {
    /// Connects, and does nothing yet.
    pub async fn of(script: Script) -> Self {
        let terms = script.terms;
        let builder = match &script.urls[..] {
            [url] => Client::builder().url(url),
            urls => Client::builder().cluster(urls),
        };
        let deadline = if terms.network { HASTE } else { PATIENCE };
        let client = builder.cache_deadline(deadline).deadline(deadline);
        let client = client.open().expect("good URLs");
        client.ping().await.expect("an answer");
        let strict = client
            .cache(&script.cache)
            .jitter(0.0)
            .takeover(Duration::from_millis(500))
            .max_load(Duration::from_secs(5))
            .error_ttl(if terms.windows { SHORT_TTL } else { HASTE });
        let strict = match script.process % 2 {
            1 if terms.network => strict.outage(Outage::Bypass),
            _ => strict,
        };
        let cache = match terms.near {
            true => strict.clone().near(NearCache::new().max_staleness(NEAR)),
            false => strict.clone(),
        };
        Self {
            actor: Arc::new(Actor {
                script,
                strict,
                cache,
                left: AtomicUsize::new(0),
                failed: AtomicUsize::new(0),
                updated: AtomicUsize::new(0),
            }),
            phase: watch::Sender::new(Phase::Busy),
            tasks: JoinSet::new(),
        }
    }

    /// Hears what the world says. `None` at the end.
    pub async fn hear(&mut self, word: &str) -> Option<String> {
        match word {
            "go" => {
                for task in 0..READERS {
                    let actor = self.actor.clone();
                    self.tasks.spawn(actor.reads(task, self.phase.subscribe()));
                }
                let actor = self.actor.clone();
                self.tasks.spawn(actor.writes(self.phase.subscribe()));
            }
            "warm" => self.actor.warm().await,
            "soften" => self.actor.soften().await,
            "read the old" => self.actor.read_the_old().await,
            "quiet" => drop(self.phase.send_replace(Phase::Quiet)),
            "last" => drop(self.phase.send_replace(Phase::Last)),
            "stop" => {
                self.phase.send_replace(Phase::Over);
                while let Some(task) = self.tasks.join_next().await {
                    task.expect("no panic");
                }
                return None;
            }
            unknown => panic!("not a word: {unknown}"),
        }
        Some("done".to_owned())
    }

    pub fn deeds(&self) -> Deeds {
        let stats = self.actor.cache.stats();
        let count = |count: &AtomicUsize| count.load(Ordering::SeqCst) as u64;
        Deeds {
            near_hits: stats.near_hits,
            stale_served: stats.stale_served,
            refused: stats.refused_commits,
            shared: stats.shared_loads,
            left: count(&self.actor.left),
            failed: count(&self.actor.failed),
            updated: count(&self.actor.updated),
        }
    }
}

impl Actor {
    async fn reads(self: Arc<Self>, task: usize, phase: watch::Receiver<Phase>) {
        let mut plan = Plan::of(self.script.terms, self.script.process, task);
        let mut line = Line::to(&self.script.truth).await;
        loop {
            let mut read = plan.read();
            let now = *phase.borrow();
            match now {
                Phase::Busy | Phase::Last => {}
                Phase::Quiet => {
                    read.keys.retain(|key| *key < KEYS - COLD);
                    read.pause += Duration::from_millis(1);
                }
                Phase::Over => return,
            }
            if !read.keys.is_empty() {
                self.read(&mut line, &read, now).await;
            }
            tokio::time::sleep(read.pause).await;
        }
    }

    async fn writes(self: Arc<Self>, phase: watch::Receiver<Phase>) {
        let mut plan = Plan::of(self.script.terms, self.script.process, READERS);
        let mut line = Line::to(&self.script.truth).await;
        while *phase.borrow() == Phase::Busy {
            let write = plan.write();
            self.write(&mut line, &write).await;
            tokio::time::sleep(write.pause).await;
        }
    }

    /// Stores all keys so that they may be served stale for long.
    async fn warm(self: &Arc<Self>) {
        let mut line = Line::to(&self.script.truth).await;
        for key in 0..KEYS {
            let read = ReadPlan::simple(key, LONG);
            self.read(&mut line, &read, Phase::Quiet).await;
        }
    }

    /// Reads the cold keys, which have been stale for longer than the reads take.
    async fn read_the_old(self: &Arc<Self>) {
        let mut line = Line::to(&self.script.truth).await;
        for key in KEYS - COLD..KEYS {
            let read = ReadPlan::simple(key, SHORT);
            self.read(&mut line, &read, Phase::Last).await;
        }
    }

    /// Invalidates the last key softly.
    async fn soften(&self) {
        let mut line = Line::to(&self.script.truth).await;
        let write = WritePlan {
            keys: vec![KEYS - 1],
            by: By::Softly,
            raises: true,
            waits: false,
            pause: Duration::ZERO,
        };
        self.write(&mut line, &write).await;
    }

    async fn read(self: &Arc<Self>, line: &mut Line, plan: &ReadPlan, phase: Phase) {
        let first = line.ask(&self.question(plan, phase)).await[0];
        let answers = self.answers(plan);
        let answers = match plan.leaves {
            None => answers.await,
            Some(leaves) => match tokio::time::timeout(leaves, answers).await {
                Ok(answers) => answers,
                Err(_) => {
                    self.left.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            },
        };
        let answered = (first..).zip(answers);
        let got: Vec<String> = answered
            .filter_map(|(read, version)| Some(format!("{read}={}", version?)))
            .collect();
        if !got.is_empty() {
            line.tell(&format!("got {}", got.join(" "))).await;
        }
    }

    /// How a read is announced, with the rule that it is held to.
    fn question(&self, plan: &ReadPlan, phase: Phase) -> String {
        let terms = self.script.terms;
        let is_near = terms.near && !plan.strict;
        let window = plan.window.unwrap_or_default();
        let near = if is_near { NEAR } else { Duration::ZERO };
        // Only at the end: a load that stands still may store at any time what it has seen.
        let judges_age = phase == Phase::Last && !terms.network;
        let most = match terms.windows && window != LONG && judges_age {
            true => (SHORT_TTL + near.max(window) + SLACK)
                .as_millis()
                .to_string(),
            false => "-".to_owned(),
        };
        let near = match is_near {
            true => near.as_millis().to_string(),
            false => "-".to_owned(),
        };
        let (client, window) = (self.script.client, window.as_millis());
        let keys = joined(&plan.keys);
        format!("ask {client} {near} {window} {most} {keys}")
    }

    /// The version that each key was given, if any.
    async fn answers(self: &Arc<Self>, plan: &ReadPlan) -> Vec<Option<u64>> {
        let cache = if plan.strict {
            &self.strict
        } else {
            &self.cache
        };
        let names: Vec<String> = plan.keys.iter().map(|key| name(*key)).collect();
        let (key, name) = (plan.keys[0], &names[0]);
        let ttl = match self.script.terms.windows {
            true => SHORT_TTL,
            false => LONG,
        };
        let load = {
            let (actor, plan) = (self.clone(), plan.load);
            move |keys: Vec<KeyNumber>| {
                let actor = actor.clone();
                async move { actor.load(keys, plan).await }
            }
        };
        let one = {
            let load = load.clone();
            move || async move { Ok::<_, io::Error>(load(vec![key]).await?[0]) }
        };
        let call = match plan.way {
            Way::Get => {
                let found = cache.get::<u64>(name).await;
                let found = self.noted(found).flatten();
                return vec![found.map(|version| *version)];
            }
            Way::GetMany => {
                let found = self.noted(cache.get_many::<u64>(&names).await);
                let found = found.into_iter().flatten();
                return found.map(|it| it.map(|version| *version)).collect();
            }
            Way::Rewriting => {
                let Some(entry) = self.noted(cache.entry::<u64>(name).await).flatten() else {
                    return Vec::new();
                };
                let version = *entry;
                tokio::time::sleep(plan.load.before).await;
                let is_stored = self.noted(cache.update(&entry, &version).await);
                let stored = usize::from(is_stored == Some(true));
                self.updated.fetch_add(stored, Ordering::SeqCst);
                return vec![Some(version)];
            }
            Way::MemoizeMany => {
                let load = move |names: Vec<String>| {
                    let keys: Vec<KeyNumber> = names.iter().map(|name| number(name)).collect();
                    let loaded = load(keys);
                    async move {
                        let versions = names.into_iter().zip(loaded.await?);
                        Ok::<HashMap<String, u64>, io::Error>(versions.collect())
                    }
                };
                // Tags are common to all keys of a batch: each has those of all others, too.
                let tags = plan.keys.iter().flat_map(|key| self.tags(*key));
                let call = cache.memoize_many(&names, ttl, load).tags(tags);
                let call = match plan.window {
                    None => call,
                    Some(window) => call.stale(window),
                };
                let Some(found) = self.noted(call.await) else {
                    return Vec::new();
                };
                let found = found.into_iter().zip(&plan.keys);
                let version = |(outcome, key): (hedgerow::Result<Option<Arc<u64>>>, &KeyNumber)| {
                    let outcome = outcome.map(|version| version.expect("it is loaded"));
                    self.version(outcome, *key)
                };
                return found.map(version).collect();
            }
            Way::Informed => {
                let tags = self.tags(key);
                let informed = move |loading: Loading<u64>| async move {
                    let old = loading.stale();
                    let version = one().await?;
                    loading.tags(tags);
                    Ok::<_, io::Error>(match old {
                        Some(old) if *old == version => loading.not_modified(&old),
                        _ => version,
                    })
                };
                let call = cache.memoize_with(name, ttl, informed);
                let value = match plan.window {
                    None => call.await,
                    Some(window) => call.stale_if_error(window).await,
                };
                return vec![self.version(value, key)];
            }
            Way::Memoize | Way::Refreshing => cache.memoize(name, ttl, one).tags(self.tags(key)),
        };
        let value = match (plan.way, plan.window) {
            (_, None) => call.await,
            (Way::Refreshing, Some(window)) if window == SHORT => {
                let call = call.stale_if_error(window);
                call.soft_timeout(Duration::from_millis(2)).await
            }
            (Way::Refreshing, Some(window)) => call.stale(window).refresh_early().await,
            (_, Some(window)) => call.stale(window).await,
        };
        vec![self.version(value, key)]
    }

    /// The version that a call was given. The error of a load counts as what the load has seen.
    fn version(&self, value: hedgerow::Result<Arc<u64>>, key: KeyNumber) -> Option<u64> {
        match value {
            Err(error) if error.kind() == ErrorKind::Loader => Some(failed_at(&error, key)),
            value => self.noted(value).map(|version| *version),
        }
    }

    /// What Redis has answered, if it has.
    fn noted<T>(&self, answer: hedgerow::Result<T>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(error) if self.script.terms.network => {
                drop(error);
                self.failed.fetch_add(1, Ordering::SeqCst);
                None
            }
            Err(error) => panic!("a read has failed: {error}"),
        }
    }

    /// The truth, as it was at some moment of the load.
    async fn load(&self, keys: Vec<KeyNumber>, plan: LoadPlan) -> io::Result<Vec<u64>> {
        let mut line = Line::to(&self.script.truth).await;
        let client = self.script.client;
        line.tell(&format!("load {client} {}", joined(&keys))).await;
        tokio::time::sleep(plan.before).await;
        let versions = line.ask(&format!("see {}", joined(&keys))).await;
        tokio::time::sleep(plan.after).await;
        if plan.fails {
            let seen = keys.iter().zip(&versions);
            let seen = seen.map(|(key, version)| format!("{}={version},", name(*key)));
            return Err(io::Error::other(format!("{FAILED} {}", joined(seen))));
        }
        Ok(versions)
    }

    async fn write(&self, line: &mut Line, plan: &WritePlan) {
        let process = self.script.process;
        if plan.waits {
            line.ask(&format!("meet {}", plan.keys[0])).await;
        }
        let (raised, seen): (Vec<KeyNumber>, Vec<KeyNumber>) = plan
            .keys
            .iter()
            .partition(|key| plan.raises && may_raise(process, **key));
        let mut versions = line.ask(&format!("raise {}", joined(&raised))).await;
        versions.extend(line.ask(&format!("see {}", joined(&seen))).await);
        let keys: Vec<KeyNumber> = raised.into_iter().chain(seen).collect();
        self.invalidate(plan.by, &keys, &versions).await;
        let gone = keys.iter().zip(&versions);
        let gone = joined(gone.map(|(key, version)| format!("{key}={version}")));
        let how = if plan.by == By::Softly {
            "soft"
        } else {
            "hard"
        };
        line.ask(&format!("gone {} {how} {gone}", self.script.client))
            .await;
    }

    /// Makes all that was loaded of these keys before now invalid, however often it takes.
    async fn invalidate(&self, by: By, keys: &[KeyNumber], versions: &[u64]) {
        // Each process has both kinds of handles.
        let cache = if keys[0].is_multiple_of(2) {
            &self.strict
        } else {
            &self.cache
        };
        let names: Vec<String> = keys.iter().map(|key| name(*key)).collect();
        loop {
            let done = match by {
                By::Remove => cache.remove(&names[0]).await,
                By::RemoveMany => cache.remove_many(&names).await.map(drop),
                By::Set => self.set(cache, keys[0], versions[0]).await,
                By::SetMany => {
                    let tags = keys.iter().flat_map(|key| self.tags(*key));
                    let set = cache.set_many(names.iter().zip(versions), LONG).tags(tags);
                    set.await.and_then(|stored| stored.into_iter().collect())
                }
                By::Update => self.update(cache, keys[0], versions[0]).await,
                By::OwnTag => cache.invalidate_tags([self.own_tag(keys[0])]).await,
                By::GroupTag(group) => cache.invalidate_tags([self.group_tag(group)]).await,
                By::Clear => cache.clear().await,
                By::Softly => cache.invalidate_tags([self.own_tag(keys[0])]).soft().await,
            };
            match done {
                Ok(()) => return,
                Err(error) if self.script.terms.network => drop(error),
                Err(error) => panic!("an invalidation has failed: {error}"),
            }
        }
    }

    async fn set(&self, cache: &Cache, key: KeyNumber, version: u64) -> hedgerow::Result<()> {
        let set = cache.set(&name(key), &version, LONG);
        set.tags(self.tags(key)).await
    }

    async fn update(&self, cache: &Cache, key: KeyNumber, version: u64) -> hedgerow::Result<()> {
        let updated = cache.update_with(&name(key), |_: &u64| version).await?;
        if updated.is_none() {
            // A load that began before may be under way, so this is not enough.
            return self.set(cache, key, version).await;
        }
        self.updated.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn tags(&self, key: KeyNumber) -> Vec<String> {
        vec![self.own_tag(key), self.group_tag(key % GROUPS)]
    }

    fn own_tag(&self, key: KeyNumber) -> String {
        format!("{}:{}", self.script.cache, name(key))
    }

    fn group_tag(&self, group: usize) -> String {
        format!("{}:group {group}", self.script.cache)
    }
}

fn name(key: KeyNumber) -> String {
    format!("k{key}")
}

fn number(name: &str) -> KeyNumber {
    name[1..].parse().expect("a key of the world")
}

/// Which version of `key` the load had seen that failed with `error`, here or elsewhere.
fn failed_at(error: &Error, key: KeyNumber) -> u64 {
    let text = error.to_string();
    let (_, seen) = text.split_once(FAILED).expect("the error of a load");
    let (_, version) = seen
        .split_once(&format!(" {}=", name(key)))
        .expect("it was for this key");
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    digits
        .and_then(|digits| digits.parse().ok())
        .expect("a version")
}

/// What a load that fails says, before the versions that it has seen.
const FAILED: &str = "failed, having seen:";

/// The bound of near caches.
const NEAR: Duration = Duration::from_millis(300);

/// The TTL in worlds with stale windows.
const SHORT_TTL: Duration = Duration::from_millis(30);

/// How much older a value may be than its TTL and window say: for as long as it took to load.
pub const SLACK: Duration = Duration::from_secs(2);

/// The deadline where calls are to fail, and where they are not.
const HASTE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// How many tasks of a process read at a time.
const READERS: usize = 4;
