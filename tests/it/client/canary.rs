//! No public type shows a secret. Each is made of canaries, and shown; one that has no line here
//! fails the test, so that a new type cannot be forgotten. What errors, spans and events tell when
//! calls fail is looked at in `secrets`; here, what they tell a user who may do nothing.
//!
//! Names of keys, locks, tags and servers are no secrets, nor is a lock's metadata, which is there
//! to be told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hedgerow::cache::{
    BareCache, BareMemoize, EntryInfo, Explanation, FailureInfo, Informed, Invalidate, Loading,
    Memo, MemoizeMany, Plain, TagInfo, TagSnapshot, TagVerdict, Verdict,
};
use hedgerow::{
    Cache, Client, ClientBuilder, Codec, Compression, CompressionOptions, Counter, CustomCodec,
    Error, ErrorKind, Fence, Guard, Lock, OnOutage, Outage, Permits, Semaphore, ValueIn, ValueOut,
    cache::Bypassed, cache::Entry, cache::Keys, cache::Memoize, cache::ReadFrom,
    cache::RemoveMatching, cache::Removed, cache::Set, cache::SetIf, cache::SetMany, cache::Stats,
    cache::Steps, cache::Undelivered, cache::Update, client::AddressMap, client::HideKeys,
    client::Request, counter::Add, counter::Added, embedded, lock::Holder, lock::LockInfo,
    lock::LossReason, lock::Waiter, preflight::Finding, preflight::FindingCode,
    preflight::Preflight, preflight::Severity, session::Conflict, session::SessionInfo,
    session::SessionStats, session::SessionStore, session::Trouble,
};
use redis::Value;

use crate::client::secrets::{misfortunes, refuse, told};
use crate::support::listener::Listener;
use crate::support::lua;
use crate::support::server::Server;
use crate::support::wait::{bounded, queued};

const USER: &str = "canary-user-5b1e";
const PASSWORD: &str = "canary-password-93d0";
const VALUE: &str = "canary-value-c4a8";
const CANARIES: [&str; 3] = [USER, PASSWORD, VALUE];

const MINUTE: Duration = Duration::from_secs(60);

/// How a type is shown, filed under its name.
#[derive(Debug, Default)]
struct Shown(Vec<(String, String)>);

/// JSON, and what the codec is shown on the way.
#[derive(Clone)]
struct Shows(Arc<Mutex<Shown>>);

impl std::fmt::Debug for Shows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shows")
    }
}

impl CustomCodec for Shows {
    fn encode(
        &self,
        value: ValueIn<'_>,
        payload: &mut dyn io::Write,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.lock().expect("no panic").add::<ValueIn<'_>>(&value);
        Ok(serde_json::to_writer(payload, &value)?)
    }

    fn decode(
        &self,
        payload: &[u8],
        value: ValueOut<'_>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.lock().expect("no panic").add::<ValueOut<'_>>(&value);
        Ok(value.read_from(&mut serde_json::Deserializer::from_slice(payload))?)
    }
}

impl Shown {
    /// `T` is named so that the compiler holds the line to the type.
    fn add<T: std::fmt::Debug>(&mut self, value: &T) {
        let name = std::any::type_name::<T>();
        let name = name.split('<').next().unwrap_or_default();
        let name = name.rsplit("::").next().unwrap_or_default();
        self.0
            .push((name.to_owned(), format!("{value:?} {value:#?}")));
    }
}

#[tokio::test]
async fn no_public_type_shows_a_secret() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let mut shown = Shown(Vec::new());
    let url = admit(&server, "~* &* +@all").await;

    let builder = Client::builder().url(&url);
    shown.add::<ClientBuilder>(&builder);
    let cluster = format!("redis://{USER}:{PASSWORD}@127.0.0.1:1");
    let replicas = Client::builder().replicas(&cluster, [&cluster]);
    shown.add::<ClientBuilder>(&replicas);
    shown.add::<Client>(&replicas.open().expect("a good URL"));
    let sentinels = Client::builder().sentinels([&cluster], "service");
    let sentinels = sentinels.credentials(hedgerow::client::Credentials::user(USER, PASSWORD));
    shown.add::<ClientBuilder>(&sentinels);
    shown.add::<Client>(&sentinels.open().expect("a good URL"));
    let cluster = Client::builder().cluster([cluster]);
    shown.add::<ClientBuilder>(&cluster);
    shown.add::<Client>(&cluster.open().expect("a good URL"));
    let client = builder.open().expect("a good URL");
    client.ping().await.expect("admitted");
    shown.add::<Client>(&client);
    let preflight = client.preflight().await.expect("an answer");
    shown.add::<Finding>(&preflight.findings()[0]);
    shown.add::<FindingCode>(&preflight.findings()[0].code());
    shown.add::<Severity>(&preflight.findings()[0].severity());
    shown.add::<Preflight>(&preflight);

    let counter = client.counter("c");
    shown.add::<Counter>(&counter);
    let add = counter.add(1).once("request-1", MINUTE);
    shown.add::<Add>(&add);
    shown.add::<Added>(&add.await.expect("added"));

    locks(&client, &mut shown).await;
    #[cfg(feature = "limit")]
    limits(&client, &mut shown).await;
    #[cfg(feature = "http")]
    pages(&client, &mut shown).await;

    let cache = client.cache("k").codec(Codec::Json);
    shown.add::<Cache>(&cache);
    shown.add::<Codec>(&Codec::Json);
    shown.add::<Outage>(&Outage::Bypass);
    shown.add::<OnOutage>(&OnOutage::FailFast);
    shown.add::<AddressMap>(&AddressMap::from([("10.0.0.1:1", "10.0.0.2:1")]));
    shown.add::<Request<'_, i64>>(&client.counter("c").get());
    shown.add::<HideKeys>(&HideKeys::keyed(PASSWORD));
    shown.add::<Bypassed>(&cache.bypassed());
    shown.add::<Undelivered>(&cache.undelivered());
    shown.add::<ReadFrom>(&ReadFrom::Primary);
    shown.add::<Compression>(&Compression::Lz4);
    shown.add::<CompressionOptions>(&Compression::Lz4.min_size(0));
    #[cfg(feature = "encrypt")]
    {
        let secret: [u8; 32] = *PASSWORD.repeat(32).as_bytes().first_chunk().expect("long");
        let keyring = hedgerow::Keyring::new(1, &secret).expect("an id");
        shown.add::<hedgerow::Keyring>(&keyring);
        shown.add::<Cache>(&cache.clone().encrypt(keyring));
    }
    let codec = Shows(Arc::default());
    let custom = cache.clone().custom_codec(8, codec.clone());
    let custom = custom.codec(Codec::Custom(8));
    custom.set("x", &VALUE, MINUTE).await.expect("stored");
    let found = custom.get::<String>("x").await.expect("an answer");
    assert_eq!(found.expect("a hit").as_str(), VALUE);
    shown.0.append(&mut codec.0.lock().expect("no panic").0);
    #[cfg(feature = "near")]
    shown.add::<hedgerow::cache::NearCache>(&hedgerow::cache::NearCache::new());
    let set = cache.set("v", &VALUE, MINUTE);
    shown.add::<Set<'_, &str>>(&set);
    set.await.expect("stored");
    verbs(&cache, &mut shown).await;
    loads(&cache, &mut shown).await;
    sessions(&client.cache("sessions"), &mut shown).await;
    let secret = VALUE.to_owned();
    let loader = async move || Ok::<_, io::Error>(secret);
    let loader = || loader();
    let memoize = cache.memoize::<String, io::Error, _, _>("w", MINUTE, loader);
    shown.add::<Memoize<Plain<_>>>(&memoize);
    memoize.await.expect("loaded");
    let error = cache.get::<u64>("v").await;
    assert!(error.expect("a miss").is_none());
    let error = Client::open(&format!("redis://{USER}:{PASSWORD}@[::1"));
    let error = error.expect_err("no URL");
    shown.add::<ErrorKind>(&error.kind());
    shown.add::<Error>(&error);
    shown
        .add::<hedgerow::client::Credentials>(&hedgerow::client::Credentials::user(USER, PASSWORD));
    #[cfg(feature = "tls")]
    shown.add::<hedgerow::client::Tls>(&hedgerow::client::Tls::new().client_pem(USER, PASSWORD));
    let private = embedded::Server::start_with(&["--requirepass", PASSWORD]).await;
    shown.add::<embedded::Server>(&private.expect("a server"));

    let mut seen = listener.told();
    for (_, text) in &shown.0 {
        seen += text;
    }
    assert!(seen.contains("acquire"), "it is listened to: {seen}");
    refuse(&seen, &CANARIES);
    let names: BTreeSet<String> = shown.0.into_iter().map(|(name, _)| name).collect();
    let mut expected = public_types();
    if cfg!(not(feature = "encrypt")) {
        expected.remove("Keyring");
    }
    if cfg!(not(feature = "near")) {
        expected.remove("NearCache");
    }
    if cfg!(not(feature = "tls")) {
        expected.remove("Tls");
    }
    if cfg!(not(feature = "limit")) {
        expected.retain(|name| !LIMITS.contains(&name.as_str()));
    }
    if cfg!(not(all(feature = "limit", feature = "http"))) {
        expected.retain(|name| !LIMIT_LAYERS.contains(&name.as_str()));
    }
    if cfg!(not(feature = "http")) {
        expected.retain(|name| !PAGES.contains(&name.as_str()));
    }
    assert_eq!(names, expected);
}

/// What is there with the feature `limit`.
const LIMITS: [&str; 12] = [
    "Algorithm",
    "Check",
    "CheckAll",
    "DecidedBy",
    "Decision",
    "Decisions",
    "LimitOutage",
    "LimitStats",
    "Quota",
    "RateLimiter",
    "RateLimits",
    "UntilReady",
];

/// What is there with the feature `http`, too.
const LIMIT_LAYERS: [&str; 8] = [
    "ClientAddress",
    "InvalidProxy",
    "Keyless",
    "LayerLimits",
    "NoAddress",
    "RateLimitLayer",
    "RateLimited",
    "RateLimiting",
];

/// Limiters, groups, and what their calls take and return.
#[cfg(feature = "limit")]
async fn limits(client: &Client, shown: &mut Shown) {
    use hedgerow::limit::{
        Algorithm, Check, CheckAll, DecidedBy, Decision, Decisions, LimitOutage, LimitStats, Quota,
        UntilReady,
    };
    use hedgerow::{RateLimiter, RateLimits};

    let quota = Quota::per_second(5);
    shown.add::<Quota>(&quota);
    shown.add::<Algorithm>(&quota.algorithm());
    let local = LimitOutage::Local { share: 0.5 };
    shown.add::<LimitOutage>(&local);
    let limiter = client.rate_limiter("api", quota).outage(local);
    shown.add::<RateLimiter>(&limiter);
    let check = limiter.check("k");
    shown.add::<Check>(&check);
    let decision = check.await.expect("an answer");
    shown.add::<DecidedBy>(&decision.decided_by);
    shown.add::<Decision>(&decision);
    let ready = limiter.until_ready("k");
    shown.add::<UntilReady>(&ready);
    ready.await.expect("a turn");
    shown.add::<LimitStats>(&limiter.stats());
    let limits = client.rate_limits("login").limit("a", quota);
    shown.add::<RateLimits>(&limits);
    let check = limits.check_all("k");
    shown.add::<CheckAll>(&check);
    shown.add::<Decisions>(&check.await.expect("an answer"));
    #[cfg(feature = "http")]
    limit_layers(limiter, shown).await;
}

/// The layer for limits, and what it is made of.
#[cfg(all(feature = "limit", feature = "http"))]
async fn limit_layers(limiter: hedgerow::RateLimiter, shown: &mut Shown) {
    use axum::body::Body;
    use axum::http::Request;
    use hedgerow::http::{
        ClientAddress, InvalidProxy, Keyless, LayerLimits, NoAddress, RateLimitLayer, RateLimited,
        RateLimiting,
    };
    use tower::{Layer as _, Service as _};

    let address = ClientAddress::peer(|_| None);
    shown.add::<ClientAddress>(&address);
    let invalid = address.clone().forwarded(["no network"]);
    shown.add::<InvalidProxy>(&invalid.expect_err("no network"));
    let request = Request::get("/").header("x-forwarded-for", PASSWORD);
    let (request, ()) = request.body(()).expect("a good request").into_parts();
    shown.add::<NoAddress>(&address.key(&request).expect_err("no peer"));
    shown.add::<Keyless>(&Keyless::Share);
    let limits = LayerLimits::from(limiter);
    shown.add::<LayerLimits>(&limits);
    let layer = RateLimitLayer::by_address(limits, address).keyless(Keyless::Share);
    shown.add::<RateLimitLayer>(&layer);
    let mut service = layer.layer(axum::Router::<()>::new());
    shown.add::<RateLimiting<axum::Router>>(&service);
    let request = Request::get("/").header("authorization", PASSWORD);
    let answer = service.call(request.body(Body::empty()).expect("a good request"));
    shown.add::<RateLimited<Body, Infallible>>(&answer);
    let Ok(_) = answer.await;
}

/// What is there with the feature `http`, of pages.
const PAGES: [&str; 7] = [
    "CacheTags",
    "InvalidArgument",
    "PageBody",
    "PageCache",
    "PageService",
    "PageStats",
    "PurgeEndpoint",
];

/// A layer for pages, and what its answers are made of.
#[cfg(feature = "http")]
async fn pages(client: &Client, shown: &mut Shown) {
    use axum::body::Body;
    use hedgerow::http::{
        CacheTags, InvalidArgument, PageBody, PageCache, PageService, PageStats, PurgeEndpoint,
    };
    use tower::{Layer as _, ServiceExt as _};

    let pages = PageCache::new(client.cache("pages")).hosts(["a"]);
    shown.add::<PageCache>(&pages);
    shown.add::<CacheTags>(&CacheTags::new(["t"]));
    shown.add::<InvalidArgument>(&pages.purge_url("b").expect_err("no URL"));
    let endpoint = pages.purge_endpoint(&format!("{PASSWORD}{PASSWORD}"));
    shown.add::<PurgeEndpoint>(&endpoint.expect("long enough"));
    let handler = tower::service_fn(|_: http::Request<Body>| async {
        let page = http::Response::builder().header("cache-control", "public, max-age=60");
        Ok::<_, Infallible>(page.body(Body::from(VALUE)).expect("a response"))
    });
    let service = pages.layer(handler);
    shown.add::<PageService<_>>(&service);
    for _ in 0..2 {
        let request = http::Request::builder()
            .uri("/")
            .header("host", "a")
            .header("authorization", PASSWORD);
        let request = request.body(Body::empty()).expect("a request");
        let Ok(page) = service.clone().oneshot(request).await;
        shown.add::<PageBody<Body>>(page.body());
    }
    shown.add::<PageStats>(&pages.stats());
}

/// What calls of a cache take and return.
async fn verbs(cache: &Cache, shown: &mut Shown) {
    let absent = cache.set("v", &VALUE, MINUTE).if_absent();
    shown.add::<SetIf<'_, &str>>(&absent);
    let many = cache.set_many([("v", &VALUE)], MINUTE);
    shown.add::<SetMany<'_, &str>>(&many);
    assert!(many.await.expect("outcomes")[0].is_ok());
    let entry = cache.entry::<String>("v").await.expect("an answer");
    let entry = entry.expect("an entry");
    shown.add::<Entry<String>>(&entry);
    let value = VALUE.to_owned();
    shown.add::<Update<'_, String>>(&cache.update(&entry, &value).tags(["t"]));
    shown.add::<Keys>(&cache.keys("*"));
    shown.add::<Stats>(&cache.stats());
    let removal = cache.remove_matching("x*");
    shown.add::<RemoveMatching>(&removal);
    let mut steps = removal.steps();
    shown.add::<Steps>(&steps);
    let removed = steps.next().await.expect("a step");
    shown.add::<Removed>(&removed.expect("an answer"));
}

/// Sessions, and what is told of them.
async fn sessions(cache: &Cache, shown: &mut Shown) {
    let store = SessionStore::new(cache.clone()).user_key("user");
    shown.add::<SessionStore>(&store);
    let session = tower_sessions_core::Session::new(None, Arc::new(store.clone()), None);
    for (key, value) in [("user", "7"), ("a", VALUE)] {
        session.insert(key, value).await.expect("a new one");
    }
    session.save().await.expect("saved");
    let sessions = store.sessions_of("7").await.expect("an answer");
    shown.add::<SessionInfo>(&sessions[0]);
    // It looks as a token does, and is none: it is there to be shown.
    let (_, text) = shown.0.last_mut().expect("just added");
    *text = text.replace(&sessions[0].digest, "");
    shown.add::<SessionStats>(&store.stats());
    shown.add::<Conflict>(&Conflict::Refuse);
    session
        .insert("a", VALUE.repeat(100_000))
        .await
        .expect("loaded");
    let error = session.save().await.expect_err("it is too large");
    shown.add::<Trouble>(&Trouble::from(&error));
    shown
        .0
        .push(("Trouble".to_owned(), format!("{error} {error:?}")));
}

/// What loads, and what is told of what was loaded.
async fn loads(cache: &Cache, shown: &mut Shown) {
    let informed = cache.memoize_with("i", MINUTE, |load: Loading<String>| async move {
        Ok::<_, Infallible>((VALUE.to_owned(), format!("{load:?} {load:#?}")).1)
    });
    shown.add::<Memoize<Informed<_, String>>>(&informed);
    let loading = informed.await.expect("loaded");
    shown.0.push(("Loading".to_owned(), loading.to_string()));
    shown.0.push(("Informed".to_owned(), String::new()));
    shown.0.push(("Plain".to_owned(), String::new()));
    let many = cache.memoize_many(["v"], MINUTE, |_| async {
        Ok::<_, Infallible>(HashMap::from([("v".to_owned(), VALUE.to_owned())]))
    });
    shown.add::<MemoizeMany<String>>(&many);
    let loader = |_, _| async { Ok::<_, Infallible>(VALUE.to_owned()) };
    shown.add::<Memo<u8, String>>(&cache.memo(MINUTE, |_: &u8| VALUE.to_owned(), loader));
    let bare = cache.bare();
    shown.add::<BareCache>(&bare);
    bare.set("b", VALUE, MINUTE).await.expect("stored");
    let load = || async { Ok::<_, Infallible>(VALUE.to_owned()) };
    shown.add::<BareMemoize<_>>(&bare.memoize("b", MINUTE, load));
    let error = bare.get::<u64>("b").await;
    assert!(error.expect("a miss").is_none());
    let invalidate = cache.invalidate_tags(["t"]);
    shown.add::<Invalidate>(&invalidate);
    let snapshot = cache.tag_snapshot(["t"], MINUTE).await;
    shown.add::<TagSnapshot>(&snapshot.expect("taken"));
    let fails = async || Err::<u8, _>(io::Error::other("no such row"));
    cache
        .memoize("f", MINUTE, fails)
        .await
        .expect_err("it fails");
    let failed = cache.explain("f").await.expect("an answer");
    shown.add::<FailureInfo>(failed.failure.as_ref().expect("remembered"));
    let explanation = cache.explain("v").await.expect("an answer");
    shown
        .0
        .push(("Explanation".to_owned(), explanation.to_string()));
    shown.add::<Explanation>(&explanation);
    shown.add::<Verdict>(&explanation.verdict);
    shown.add::<EntryInfo>(explanation.entry.as_ref().expect("it is there"));
    shown.add::<TagInfo>(&explanation.tags[0]);
    shown.add::<TagVerdict>(&explanation.tags[0].state);
    // They hold times, and nothing of the user.
    for name in ["NearInfo", "NearWhy"] {
        shown.0.push((name.to_owned(), String::new()));
    }
    let asks = cache.clone();
    let explained = cache.memoize("l", MINUTE, move || async move {
        asks.explain("l").await.map(|it| format!("{:?}", it.load))
    });
    shown.0.push((
        "LoadInfo".to_owned(),
        explained.await.expect("loaded").to_string(),
    ));
}

async fn locks(client: &Client, shown: &mut Shown) {
    let semaphore = client.semaphore("s", 2).wait(MINUTE);
    shown.add::<Semaphore>(&semaphore);
    let permits = semaphore.acquire().await.expect("free");
    shown.add::<Permits>(&permits);
    permits.release().await.expect("held until now");
    let lock = client.lock("l").wait(MINUTE).metadata("who holds");
    shown.add::<Lock>(&lock);
    let guard = lock.acquire().await.expect("free");
    shown.add::<Guard>(&guard);
    shown.add::<Fence>(&guard.fence());
    let patient = lock.clone();
    let waiting = tokio::spawn(async move { patient.acquire().await });
    queued(&lock, 1).await;
    let info = lock.inspect().await.expect("an answer");
    shown.add::<Waiter>(&info.queue[0]);
    shown.add::<Holder>(info.holder.as_ref().expect("held"));
    shown.add::<LockInfo>(&info);
    lock.break_lock().await.expect("held");
    shown.add::<LossReason>(&bounded("it is told", guard.lost()).await);
    shown.add::<Guard>(&guard);
    let second = bounded("the next has it", waiting).await;
    let second = second.expect("no panic").expect("granted");
    second.release().await.expect("held");
}

#[tokio::test]
async fn a_user_who_may_do_nothing_is_told_nowhere() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let mut seen = String::new();
    for rule in ["-@all", "~other:* &other:* +@all", "~* &* +@all -get -set"] {
        let url = admit(&server, rule).await;
        let client = Client::builder().url(&url).deadline(MINUTE).open();
        let client = client.expect("a good URL");
        seen += &misfortunes(&client).await;
        let preflight = client.preflight().await.expect("an answer");
        seen += &format!("{preflight} {preflight:?}");
    }
    let gone = format!("{}?user={USER}&pass=wrong", server.url());
    let client = Client::builder().url(&gone).open();
    let client = client.expect("a good URL");
    seen += &told(&client.preflight().await.expect_err("turned away"));
    seen += &listener.told();
    for wanted in ["NOPERM", "missing", "WRONGPASS"] {
        let found = seen.to_lowercase().contains(&wanted.to_lowercase());
        assert!(found, "{wanted} was told: {seen}");
    }
    refuse(&seen, &CANARIES);
}

#[test]
#[should_panic(expected = "was told")]
fn a_canary_that_is_told_is_heard() {
    refuse(&format!("Client {{ user: {USER:?} }}"), &CANARIES);
}

/// A URL for a user with these rights, who is made.
async fn admit(server: &Server, rule: &str) -> String {
    let line = format!("ACL SETUSER {USER} reset on >{PASSWORD} {rule}");
    let words: Vec<&str> = line.split(' ').collect();
    let _: Value = server.run(&words).await;
    format!("{}?user={USER}&pass={PASSWORD}", server.url())
}

/// The types that the crate exports: at its root, and in its public modules.
fn public_types() -> BTreeSet<String> {
    let mut names = exported(&lua::sources(), Path::new("lib.rs"));
    // Of these there is nothing to show: an alias, a trait, what a loader has failed with (see
    // `secrets`), constants and functions.
    names.retain(|name| name.contains(char::is_lowercase) && name.starts_with(char::is_uppercase));
    for name in [
        "Result",
        "CustomCodec",
        "AnyLoader",
        "Captured",
        "Itself",
        "Text",
    ] {
        names.remove(name);
    }
    names
}

/// What a file offers, and what its public modules do.
fn exported(sources: &BTreeMap<PathBuf, String>, path: &Path) -> BTreeSet<String> {
    let file = syn::parse_file(&sources[path]).expect("it compiles");
    let mut names = BTreeSet::new();
    let below = |module: &str| {
        let is_root = path.ends_with("lib.rs") || path.ends_with("mod.rs");
        let directory = match is_root {
            true => path.parent().expect("a file").to_owned(),
            false => path.with_extension(""),
        };
        let (file, folder) = (format!("{module}.rs"), format!("{module}/mod.rs"));
        let candidates = [directory.join(file), directory.join(folder)];
        let found = candidates.into_iter().find(|it| sources.contains_key(it));
        found.expect("a module")
    };
    let is_public = |visibility: &syn::Visibility| matches!(visibility, syn::Visibility::Public(_));
    for item in file.items {
        match item {
            syn::Item::Mod(it) if is_public(&it.vis) && it.content.is_none() => {
                names.extend(exported(sources, &below(&it.ident.to_string())));
            }
            syn::Item::Use(it) if is_public(&it.vis) => {
                for path in named(&it.tree) {
                    let module = Path::new("").join(path.join("/"));
                    let file = [module.with_extension("rs"), module.join("mod.rs")];
                    match file.into_iter().find(|it| sources.contains_key(it)) {
                        Some(file) => names.extend(exported(sources, &file)),
                        None => names.extend(path.last().cloned()),
                    }
                }
            }
            syn::Item::Struct(it) if is_public(&it.vis) => drop(names.insert(it.ident.to_string())),
            syn::Item::Enum(it) if is_public(&it.vis) => drop(names.insert(it.ident.to_string())),
            _ => {}
        }
    }
    names
}

/// The paths of a `use`.
fn named(tree: &syn::UseTree) -> Vec<Vec<String>> {
    match tree {
        syn::UseTree::Path(it) => {
            let first = it.ident.to_string();
            let rest = named(&it.tree).into_iter();
            rest.map(|rest| [vec![first.clone()], rest].concat())
                .collect()
        }
        syn::UseTree::Name(it) => vec![vec![it.ident.to_string()]],
        syn::UseTree::Rename(it) => vec![vec![it.rename.to_string()]],
        syn::UseTree::Group(it) => it.items.iter().flat_map(named).collect(),
        syn::UseTree::Glob(_) => Vec::new(),
    }
}
