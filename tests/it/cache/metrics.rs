//! What a cache tells the `metrics` facade: all that `docs/observability.md` lists, and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hedgerow::{Cache, Client, ErrorKind, Outage};
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

use crate::support::server::Server;
use crate::support::wait::until;

const MINUTE: Duration = Duration::from_secs(60);

/// Kind, name, and labels with their values.
type Meter = (&'static str, String, Vec<(String, String)>);

/// Keeps what was registered. The bits of a gauge are those of a float; of a histogram, the number
/// of values is kept.
#[derive(Debug, Default)]
struct Kept {
    meters: Mutex<BTreeMap<Meter, Arc<AtomicU64>>>,
    registrations: AtomicU64,
}

struct Values(Arc<AtomicU64>);

impl HistogramFn for Values {
    fn record(&self, value: f64) {
        assert!((0.0..3600.0).contains(&value), "{value} s");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Kept {
    fn register(&self, kind: &'static str, key: &Key) -> Arc<AtomicU64> {
        self.registrations.fetch_add(1, Ordering::Relaxed);
        let labels = key.labels();
        let mut labels: Vec<_> = labels
            .map(|it| (it.key().to_owned(), it.value().to_owned()))
            .collect();
        labels.sort();
        let meter = (kind, key.name().to_owned(), labels);
        let mut meters = self.meters.lock().expect("no panic");
        meters.entry(meter).or_default().clone()
    }

    /// The values of the metric `name`, one for each set of labels.
    fn values(&self, name: &str) -> Vec<u64> {
        let meters = self.meters.lock().expect("no panic");
        let values = meters.iter().filter(|(meter, _)| meter.1 == name);
        values.map(|(_, it)| it.load(Ordering::Relaxed)).collect()
    }

    /// The value of the only gauge `name`.
    fn gauge(&self, name: &str) -> f64 {
        let values = self.values(name);
        assert!(values.len() <= 1, "{values:?}");
        values.first().map_or(0.0, |bits| f64::from_bits(*bits))
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, what: SharedString) {
        assert!(!what.is_empty());
    }
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, what: SharedString) {
        assert!(!what.is_empty());
    }
    fn describe_histogram(&self, _: KeyName, unit: Option<Unit>, what: SharedString) {
        assert!(!what.is_empty() && unit == Some(Unit::Seconds));
    }
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.register("counter", key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.register("gauge", key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Values(self.register("histogram", key))))
    }
}

/// Calls verbs that read, load, and store, each of them at least once.
async fn use_all(cache: &Cache) {
    let load = || async { Ok::<_, Infallible>("a value".repeat(1000)) };
    for _ in 0..3 {
        cache.memoize("a", MINUTE, load).await.expect("loaded");
    }
    let fails = || async { Err::<String, _>("no".to_owned()) };
    let failed = cache.memoize("b", MINUTE, fails).await;
    failed.expect_err("it fails");
    cache.set("c", "x", MINUTE).await.expect("stored");
    assert!(cache.add("d", "x", MINUTE).await.expect("stored"));
    let items = [("e", &"x"), ("f", &"y")];
    let stored = cache.set_many(items, MINUTE).await.expect("stored");
    assert!(stored.iter().all(Result::is_ok));
    let updated = cache.update_with("c", |text: &String| text.clone()).await;
    updated.expect("an answer");
    let keys = ["a", "b", "c"];
    let found = cache.get_many::<String>(keys).await.expect("an answer");
    assert_eq!(found.iter().flatten().count(), 2);
    assert!(cache.contains("a").await.expect("an answer"));
    assert!(cache.get::<u64>("a").await.expect("foreign").is_none());
    cache.remove("a").await.expect("removed");
    cache.clear().await.expect("cleared");
}

/// Asks for a page twice, in a layer on `cache`. Returns what the layer has counted.
#[cfg(feature = "http")]
async fn ask_for_pages(cache: &Cache) -> hedgerow::http::PageStats {
    use axum::body::Body;
    use http::{Request, Response};
    use tower::{Layer as _, ServiceExt as _};

    let pages = hedgerow::http::PageCache::new(cache.clone());
    let site = tower::service_fn(|_: Request<Body>| async {
        let page = Response::builder().header("cache-control", "max-age=60");
        Ok::<_, Infallible>(page.body(Body::from("x")).expect("a response"))
    });
    let service = pages.layer(site);
    for target in ["/", "/", "/?q"] {
        let request = Request::builder().uri(target).header("host", "a");
        let request = request.body(Body::empty()).expect("a request");
        let Ok(answered) = service.clone().oneshot(request).await;
        assert!(answered.status().is_success());
    }
    pages.stats()
}

/// Creates a session twice and ends it, in a store on `cache`. Returns what the store has counted.
#[cfg(feature = "session")]
async fn use_sessions(cache: &Cache) -> hedgerow::session::SessionStats {
    use time::OffsetDateTime;
    use tower_sessions_core::SessionStore as _;
    use tower_sessions_core::session::{Id, Record};

    let store = hedgerow::SessionStore::new(cache.clone());
    for _ in 0..2 {
        let mut record = Record {
            id: Id::default(),
            data: std::collections::HashMap::new(),
            expiry_date: OffsetDateTime::now_utc() + time::Duration::HOUR,
        };
        store.create(&mut record).await.expect("created");
        store.save(&record).await.expect("saved");
        store.delete(&record.id).await.expect("deleted");
        store.save(&record).await.expect("dropped");
    }
    store.stats()
}

/// Asserts that the counters called `hedgerow_<of>_*_total` say what `shown` does. Returns how many
/// have counted something.
fn assert_told(kept: &Kept, of: &str, shown: &dyn std::fmt::Debug) -> usize {
    let shown = format!("{shown:?}");
    let mut counts = 0;
    for field in shown.trim_end_matches(" }").split(['{', ',']).skip(1) {
        let (name, count) = field.trim().split_once(": ").expect("a field");
        let metric = kept.values(&format!("hedgerow_{of}_{name}_total"));
        assert_eq!(metric, [count.parse::<u64>().expect("a number")], "{name}");
        counts += usize::from(count != "0");
    }
    counts
}

/// Asks until the breaker says that the server is out.
async fn open_breaker(cache: &Cache) {
    until("the breaker opens", async || {
        let error = cache.get::<String>("k").await.expect_err("it is out");
        error.kind() == ErrorKind::CircuitOpen
    })
    .await;
}

fn hasty(server: &Server) -> Client {
    let soon = Duration::from_millis(300);
    let builder = server.builder().deadline(soon).cache_deadline(soon);
    builder.open().expect("a good URL")
}

/// Kind, name and labels of each row of the table.
fn documented() -> BTreeSet<(String, String, Vec<String>)> {
    let text = fs::read_to_string("docs/observability.md").expect("it is there");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [kind @ ("counter" | "gauge" | "histogram"), name, labels, _] = cells[..] else {
            return None;
        };
        let plain = |text: &str| text.replace('`', "").trim().to_owned();
        Some((
            kind.to_owned(),
            plain(name),
            labels.split(',').map(plain).collect(),
        ))
    });
    rows.collect()
}

#[tokio::test]
async fn all_metrics_and_their_labels_stand_in_the_table() {
    let server = Server::start_single().await;
    // The recorder may be installed after the client was made.
    let client = hasty(&server);
    #[cfg(not(feature = "near"))]
    let cache = client.cache("c");
    #[cfg(feature = "near")]
    let cache = super::near::near(&client);
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    use_all(&cache).await;
    #[cfg(feature = "limit")]
    {
        let limiter = client.rate_limiter("c", hedgerow::limit::Quota::per_second(5));
        let decision = limiter.check("k").await.expect("an answer");
        assert!(decision.allowed);
    }
    #[cfg(feature = "near")]
    {
        super::near::set(&cache, "k", 1).await;
        super::near::warm(&cache, "k").await;
    }
    #[cfg(feature = "http")]
    ask_for_pages(&cache).await;
    #[cfg(feature = "session")]
    use_sessions(&cache).await;
    server.kill().await;
    open_breaker(&cache).await;
    let told = cache.invalidate_tags(["t"]).await;
    told.expect_err("it is out");
    let bypasses = cache.clone().outage(Outage::Bypass);
    assert!(
        bypasses
            .get::<u64>("other")
            .await
            .expect("bypassed")
            .is_none()
    );

    let meters = kept.meters.lock().expect("no panic");
    let told = meters.keys().map(|(kind, name, labels)| {
        let names = labels.iter().map(|(name, _)| name.clone());
        ((*kind).to_owned(), name.clone(), names.collect())
    });
    let told: BTreeSet<(String, String, Vec<String>)> = told.collect();
    let mut documented = documented();
    assert!(documented.len() > 20, "the table is read");
    if cfg!(not(feature = "near")) {
        documented.retain(|(kind, name, _)| kind != "gauge" || !name.contains("near"));
    }
    if cfg!(not(feature = "limit")) {
        documented.retain(|(_, name, _)| !name.contains("limit"));
    }
    if cfg!(not(feature = "http")) {
        documented.retain(|(_, name, _)| !name.contains("pages"));
    }
    if cfg!(not(feature = "session")) {
        documented.retain(|(_, name, _)| !name.contains("session"));
    }
    let missing: Vec<_> = told.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&told).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not in the table: {missing:#?}, only in the table: {gone:#?}"
    );
    // Each metric has one set of values: no key is a label.
    assert_eq!(meters.len(), told.len());
    let values: BTreeSet<&str> = meters
        .keys()
        .flat_map(|(_, _, labels)| labels.iter().map(|(_, value)| value.as_str()))
        .collect();
    let address = server.url().trim_start_matches("unix://");
    for value in values {
        let known = ["c", "hr"].contains(&value) || value.contains(address);
        assert!(known, "{value}");
    }
}

#[tokio::test]
async fn each_counter_is_the_count_of_that_name() {
    let server = Server::start().await;
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let cache = server.client().await.cache("c");
    use_all(&cache).await;
    let counts = assert_told(&kept, "cache", &cache.stats());
    assert!(counts >= 8, "{counts}");
    for what in ["read", "load", "store"] {
        let values = kept.values(&format!("hedgerow_cache_{what}_duration_seconds"));
        assert!(values.len() == 1 && values[0] > 0, "{what}: {values:?}");
    }
    let loads = kept.values("hedgerow_cache_load_duration_seconds");
    assert_eq!(loads, [cache.stats().loads + cache.stats().failed_loads]);
}

#[cfg(feature = "http")]
#[tokio::test]
async fn each_counter_of_pages_is_the_count_of_that_name() {
    let server = Server::start().await;
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let stats = ask_for_pages(&server.client().await.cache("c")).await;
    assert_eq!(assert_told(&kept, "pages", &stats), 3, "{stats:?}");
}

#[cfg(feature = "session")]
#[tokio::test]
async fn each_counter_of_sessions_is_the_count_of_that_name() {
    let server = Server::start().await;
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let stats = use_sessions(&server.client().await.cache("c")).await;
    assert_eq!(assert_told(&kept, "session", &stats), 3, "{stats:?}");
}

/// Two layers on one cache are told together, as their cache is.
#[cfg(feature = "http")]
#[tokio::test]
async fn what_layers_of_one_cache_count_is_added_up() {
    let server = Server::start().await;
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let cache = server.client().await.cache("c");
    let (one, other) = (ask_for_pages(&cache).await, ask_for_pages(&cache).await);
    let hits = kept.values("hedgerow_pages_hits_total");
    assert_eq!(hits, [one.hits + other.hits]);
    assert!(other.hits > one.hits, "its pages were stored already");
}

#[tokio::test]
async fn calls_and_further_handles_register_nothing() {
    let server = Server::start().await;
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let client = server.client().await;
    let registrations = || kept.registrations.load(Ordering::Relaxed);
    use_all(&client.cache("c")).await;
    let before = registrations();
    assert!(before > 0);
    for number in 0..50 {
        let cache = client.cache("c").version(number);
        let key = format!("k{number}");
        assert!(
            cache
                .get::<String>(&key)
                .await
                .expect("an answer")
                .is_none()
        );
        cache.set(&key, "x", MINUTE).await.expect("stored");
    }
    assert_eq!(registrations(), before);
}

#[tokio::test]
async fn tags_that_wait_to_be_invalidated_are_a_gauge() {
    const WAITING: &str = "hedgerow_undelivered_tags";
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let server = Server::start_single().await;
    let cache = hasty(&server).cache("c");
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    assert_eq!(kept.gauge(WAITING), 0.0);
    let hold: &[&str] = &["CONFIG", "SET", "min-replicas-to-write", "1"];
    let _: () = server.run(hold).await;
    let set = cache.invalidate_tags(["t", "u"]).hold(MINUTE).await;
    set.expect_err("there is no replica");
    assert_eq!(kept.gauge(WAITING), cache.undelivered().waiting as f64);
    assert_eq!(kept.gauge(WAITING), 2.0);
    let free: &[&str] = &["CONFIG", "SET", "min-replicas-to-write", "0"];
    let _: () = server.run(free).await;
    until("they are delivered", async || kept.gauge(WAITING) == 0.0).await;
}

#[tokio::test]
async fn tags_that_find_no_room_or_are_given_up_are_counters() {
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let given_up = || kept.values("hedgerow_undelivered_given_up_total");
    let refused = || kept.values("hedgerow_undelivered_refused_total");
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    let set = cache.set("k", "x", MINUTE).tags(["0"]);
    set.await.expect("stored");
    // A key of another type is in the way of the tag from now on.
    for key in server.keys("hr:t:*").await {
        let _: () = server.run(&["DEL", &key]).await;
        let _: () = server.run(&["LPUSH", &key, "x"]).await;
    }
    let hold: &[&str] = &["CONFIG", "SET", "min-replicas-to-write", "1"];
    let _: () = server.run(hold).await;
    let told = cache.invalidate_tags(["0"]).await;
    told.expect_err("there is no replica");
    assert_eq!((refused(), given_up()), (vec![0], vec![0]));
    let many = (1..=10_000).map(|number| number.to_string());
    let told = cache.invalidate_tags(many).await;
    told.expect_err("there is no replica");
    assert_eq!((refused(), given_up()), (vec![1], vec![0]));
    let free: &[&str] = &["CONFIG", "SET", "min-replicas-to-write", "0"];
    let _: () = server.run(free).await;
    until("one is given up", async || given_up() == [1]).await;
    let counted = cache.undelivered();
    assert_eq!((counted.refused, counted.given_up), (1, 1));
}

#[tokio::test]
async fn a_breaker_is_counted_as_open_until_the_server_answers() {
    const OPEN: &str = "hedgerow_breakers_open";
    let mut server = Server::start_single().await;
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let client = hasty(&server);
    let cache = client.cache("c");
    use_all(&cache).await;
    assert_eq!(kept.gauge(OPEN), 0.0);
    let killed = server.kill().await;
    open_breaker(&cache).await;
    assert_eq!(kept.gauge(OPEN), 1.0);
    let other = hasty(&server);
    open_breaker(&other.cache("c")).await;
    assert_eq!(kept.gauge(OPEN), 2.0, "of two clients");
    drop(other);
    until("that of the other is gone", async || {
        kept.gauge(OPEN) == 1.0
    })
    .await;
    server.start_again(killed).await;
    until("the server answers", async || {
        cache.get::<String>("k").await.is_ok()
    })
    .await;
    assert_eq!(kept.gauge(OPEN), 0.0);
}

#[cfg(feature = "near")]
#[tokio::test]
async fn the_levels_of_near_caches_are_added_up() {
    let server = Server::start().await;
    let kept = Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let client = server.client().await;
    let (one, other) = (super::near::near(&client), super::near::near(&client));
    super::near::set(&one, "k", 1).await;
    super::near::warm(&one, "k").await;
    let (entries, bytes) = ("hedgerow_near_entries", "hedgerow_near_bytes");
    assert_eq!(kept.gauge(entries), 1.0);
    assert!(kept.gauge(bytes) > 0.0);
    super::near::warm(&other, "k").await;
    assert_eq!(kept.gauge(entries), 2.0);
    drop(other);
    until("what it held is gone", async || kept.gauge(entries) == 1.0).await;
}
