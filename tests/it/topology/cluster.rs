//! The primitives on a cluster: same calls, same answers, whoever serves the slot.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow::{Client, ErrorKind, Guard};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::topology::{Cluster, Node, Port, Recipe, not_here};
use crate::support::wait::{bounded, patient, until};

async fn client(cluster: &Cluster) -> Client {
    let seeds = cluster.primaries().iter().map(|node| node.url());
    let builder = patient(Client::builder().cluster(seeds));
    builder.open().expect("good seeds")
}

#[tokio::test]
async fn every_primitive_works_on_three_primaries() {
    let cluster = Cluster::start(3, 0).await;
    let (one, two) = (client(&cluster).await, client(&cluster).await);
    one.ping().await.expect("all primaries answer");

    // Counters, plain and by script, in every part of the slots.
    for number in 0..50 {
        let name = format!("views:{number}");
        one.counter(&name).add(2).await.expect("added");
        let once = || two.counter(&name).add(3).once("a", Duration::from_secs(60));
        once().await.expect("added");
        once().await.expect("a repeat");
        assert_eq!(two.counter(&name).get().await.expect("read"), 5);
    }
    let mut served = HashSet::new();
    for node in cluster.primaries() {
        served.insert(node.run::<usize>(&["DBSIZE"]).await > 0);
    }
    assert_eq!(served, HashSet::from([true]), "all primaries hold some");

    // Values with tags, most of which are served elsewhere.
    let (here, there) = (one.cache("catalogue"), two.cache("catalogue"));
    let loads = Arc::new(AtomicUsize::new(0));
    let load = async |cache: &hedgerow::Cache, number: usize| {
        let loads = loads.clone();
        let load = move || async move {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::io::Error>(number)
        };
        let memoize = cache.memoize(&format!("city:{number}"), Duration::from_secs(60), load);
        let value = memoize
            .tags([format!("country:{}", number % 7), "all".into()])
            .await;
        assert_eq!(*value.expect("loaded"), number);
    };
    for number in 0..50 {
        load(&here, number).await;
        load(&there, number).await;
    }
    assert_eq!(loads.load(Ordering::SeqCst), 50, "one load for each key");
    there
        .invalidate_tags(["country:3"])
        .await
        .expect("invalidated");
    for number in 0..50 {
        load(&here, number).await;
    }
    assert_eq!(loads.load(Ordering::SeqCst), 57, "the tagged were reloaded");
    here.clear().await.expect("cleared");
    for number in 0..50 {
        load(&there, number).await;
    }
    assert_eq!(loads.load(Ordering::SeqCst), 107);

    // Locks, one after the other through two clients.
    for number in 0..20 {
        let name = format!("invoice:{number}");
        let guard = one.lock(&name).acquire().await.expect("free");
        let refused = two.lock(&name).try_acquire().await.expect("an answer");
        assert!(refused.is_none());
        let fence = guard.fence();
        guard.release().await.expect("released");
        let guard = two.lock(&name).acquire().await.expect("free again");
        assert!(guard.fence() > fence);
    }
}

#[tokio::test]
async fn waiters_are_woken_by_push_on_every_primary() {
    let cluster = Cluster::start(3, 0).await;
    let (one, two) = (client(&cluster).await, client(&cluster).await);
    for number in 0..12 {
        let name = format!("invoice:{number}");
        let guard = one
            .lock(&name)
            .lease(Duration::from_secs(600))
            .acquire()
            .await
            .expect("free");
        let waiter = two.lock(&name).wait(Duration::from_secs(300));
        let waiting = tokio::spawn(async move { waiter.acquire().await.map(|it| it.fence()) });
        crate::support::wait::queued(&one.lock(&name), 1).await;
        let fence = guard.fence();
        guard.release().await.expect("released");
        let granted = bounded("the waiter is granted the lock", waiting).await;
        assert!(granted.expect("no panic").expect("granted") > fence);
    }
    let mut channels = 0;
    for node in cluster.primaries() {
        let heard: Vec<String> = node.run(&["PUBSUB", "SHARDCHANNELS", "hr:*:wake:*"]).await;
        channels += usize::from(!heard.is_empty());
    }
    assert_eq!(channels, 3, "each primary is listened to");
}

#[tokio::test]
async fn a_lost_push_connection_wakes_only_those_who_wait_on_its_server() {
    let cluster = Cluster::start(2, 0).await;
    let (one, two) = (client(&cluster).await, client(&cluster).await);
    let mut held: Vec<Option<(Guard, JoinHandle<_>)>> = vec![None, None];
    for number in 0.. {
        let name = format!("invoice:{number}");
        let lock = one.lock(&name).lease(Duration::from_secs(600));
        let guard = lock.acquire().await.expect("free");
        let key = format!("hr:*:lock:{name}");
        let kept: Vec<String> = cluster.primaries()[0].run(&["KEYS", &key]).await;
        let node = usize::from(kept.is_empty());
        if held[node].is_none() {
            let waiter = two.lock(&name).wait(Duration::from_secs(600));
            let waiting = tokio::spawn(async move { waiter.acquire().await.map(drop) });
            crate::support::wait::queued(&one.lock(&name), 1).await;
            held[node] = Some((guard, waiting));
        }
        if held.iter().all(Option::is_some) {
            break;
        }
    }
    let [flapping, steady] = cluster.primaries() else {
        panic!("two primaries")
    };
    let before = [asked(flapping).await, asked(steady).await];
    let rounds = 40;
    for round in 0..rounds {
        let so_far = asked(flapping).await;
        let push: Vec<String> = pushes(flapping).await;
        assert!(!push.is_empty(), "round {round}: it listens");
        for id in push {
            let _: i64 = flapping.run(&["CLIENT", "KILL", "ID", &id]).await;
        }
        until("it listens again, and has asked", async || {
            let heard: Vec<String> = flapping
                .run(&["PUBSUB", "SHARDCHANNELS", "hr:*:wake:*"])
                .await;
            !heard.is_empty() && asked(flapping).await > so_far
        })
        .await;
    }
    let woken = asked(flapping).await - before[0];
    let left_alone = asked(steady).await - before[1];
    assert!(woken >= rounds, "{woken}");
    // It asks once a second or so in any case.
    assert!(2 * left_alone < woken, "{left_alone} of {woken}");
    for (guard, waiting) in held.into_iter().flatten() {
        guard.release().await.expect("released");
        let granted = bounded("the waiter is granted the lock", waiting).await;
        granted.expect("no panic").expect("granted");
    }
}

/// How many scripts a node was asked for.
async fn asked(node: &Node) -> u64 {
    let calls = node.info("commandstats", "cmdstat_evalsha").await;
    let calls = calls.trim_start_matches("calls=").split(',').next();
    calls.and_then(|calls| calls.parse().ok()).unwrap_or(0)
}

/// The push connections of a node.
async fn pushes(node: &Node) -> Vec<String> {
    let list: String = node.run(&["CLIENT", "LIST"]).await;
    let pushes = list.lines().filter(|line| line.contains("-push "));
    let id = |line: &str| line.split(['=', ' ']).nth(1).map(str::to_owned);
    pushes.filter_map(id).collect()
}

#[tokio::test]
async fn whoever_waits_for_a_load_elsewhere_is_told_by_push() {
    let cluster = Cluster::start(3, 0).await;
    let (one, two) = (client(&cluster).await, client(&cluster).await);
    for number in 0..9 {
        let key = format!("city:{number}");
        let go = Arc::new(AtomicBool::new(false));
        let leader = {
            let (cache, key, go) = (one.cache("c"), key.clone(), go.clone());
            tokio::spawn(async move {
                let load = move || async move {
                    until("the other waits", async || go.load(Ordering::SeqCst)).await;
                    Ok::<_, std::io::Error>("leader".to_owned())
                };
                cache.memoize(&key, Duration::from_secs(60), load).await
            })
        };
        let lease = format!("hr:l:{{c:{key}}}");
        let node = cluster.node_of(&lease).await;
        until("the leader has the lease", async || {
            node.run::<usize>(&["EXISTS", &lease]).await == 1
        })
        .await;
        let follower = {
            let (cache, key) = (two.cache("c"), key.clone());
            tokio::spawn(async move {
                let load = || async { Ok::<_, std::io::Error>("follower".to_owned()) };
                cache.memoize(&key, Duration::from_secs(60), load).await
            })
        };
        until("the follower is noted", async || {
            let fields: Vec<String> = node.run(&["HKEYS", &lease]).await;
            fields.iter().any(|field| field.starts_with("w:"))
        })
        .await;
        let published = node.info("stats", "pubsubshard_channels").await;
        assert_ne!(published, "0", "the follower hears on the leader's node");
        go.store(true, Ordering::SeqCst);
        for answer in [leader, follower] {
            let value = bounded("a value", answer).await.expect("no panic");
            assert_eq!(*value.expect("loaded"), "leader");
        }
    }
}

#[tokio::test]
async fn a_slot_on_its_way_is_followed_and_every_add_counted_once() {
    let cluster = Cluster::start(2, 0).await;
    let client = client(&cluster).await;
    let counter = client.counter("views");
    counter.add(1).await.expect("added");
    let key = "hr:c:{views}";
    let slot = hedgerow::key::slot(key.as_bytes());
    let from = cluster.owner_of(slot).await;
    let migration = cluster.migrate(slot, 1 - from).await;

    assert_eq!(counter.add(1).await.expect("still here").value, 2);
    migration.carry(key).await;
    assert_eq!(counter.add(1).await.expect("follows ASK").value, 3);
    assert_eq!(counter.get().await.expect("follows ASK"), 3);

    // A call on several keys, not all of which are in one place, waits for the end of the move.
    let torn = tokio::spawn({
        let client = client.clone();
        async move {
            let counter = client.counter("views");
            counter.add(1).once("a", Duration::from_secs(60)).await
        }
    });
    until("the call has been told to try again", async || {
        let target = migration.target().info("errorstats", "errorstat_TRYAGAIN");
        !target.await.is_empty()
    })
    .await;
    migration.carry_all().await;
    migration.finish().await;
    assert_eq!(torn.await.expect("no panic").expect("added").value, 4);
    assert_eq!(counter.add(1).await.expect("follows MOVED").value, 5);
    let repeat = counter.add(1).once("a", Duration::from_secs(60));
    assert_eq!(repeat.await.expect("a repeat").value, 4);
    assert_eq!(counter.get().await.expect("read"), 5);
}

/// From Valkey 9 on slots may move whole, data first, and change hands at one moment: nobody is
/// sent with `ASK`.
#[tokio::test]
async fn slots_that_change_hands_at_one_moment_take_those_who_wait_along() {
    let cluster = Cluster::start(2, 0).await;
    if !cluster.nodes()[0].knows("cluster|migrateslots").await {
        return not_here("there is no CLUSTER MIGRATESLOTS");
    }
    let (one, two) = (client(&cluster).await, client(&cluster).await);
    let load = Load::start(&one, 16);
    load.goes_on(1_000).await;
    let lock = one.lock("invoice").lease(Duration::from_secs(600));
    let guard = lock.acquire().await.expect("free");
    let waiter = two.lock("invoice").wait(Duration::from_secs(300));
    let waiting = tokio::spawn(async move { waiter.acquire().await.map(|it| it.fence()) });
    crate::support::wait::queued(&lock, 1).await;

    let from = cluster.owner_of(hedgerow::key::slot(b"{invoice}")).await;
    cluster.hand_over(from, 1 - from).await;
    load.goes_on(1_000).await;
    let target = &cluster.nodes()[1 - from];
    until("the waiter listens where the lock is now", async || {
        let words = ["PUBSUB", "SHARDCHANNELS", "hr:*:wake:*"];
        !target.run::<Vec<String>>(&words).await.is_empty()
    })
    .await;
    let fence = guard.fence();
    guard.release().await.expect("released");
    let granted = bounded("the waiter is granted the lock", waiting).await;
    assert!(granted.expect("no panic").expect("granted") > fence);
    for (name, known, unknown) in load.stop().await {
        let value = one.counter(&name).get().await.expect("read");
        assert!(
            (known..=known + unknown).contains(&value),
            "{name}: {value}, acknowledged {known}, unknown {unknown}"
        );
    }
}

/// Adds to counters of all parts of the slots until told to stop; then says, for each counter, how
/// many adds were acknowledged and how many told as unknown.
struct Load {
    stop: Arc<AtomicBool>,
    adders: Vec<tokio::task::JoinHandle<(String, i64, i64)>>,
    acknowledged: Arc<AtomicUsize>,
}

impl Load {
    fn start(client: &Client, adders: usize) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let add = |number: usize| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let acknowledged: Arc<AtomicUsize> = Arc::clone(&acknowledged);
            tokio::spawn(async move {
                let name = format!("load:{number}");
                let (mut known, mut unknown) = (0, 0);
                while !stop.load(Ordering::SeqCst) {
                    match client.counter(&name).add(1).await {
                        Ok(_) => {
                            known += 1;
                            acknowledged.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) if error.is_indeterminate() => unknown += 1,
                        Err(error) => assert!(error.is_retryable(), "{error}"),
                    }
                }
                (name, known, unknown)
            })
        };
        Self {
            adders: (0..adders).map(add).collect(),
            stop,
            acknowledged,
        }
    }

    /// Waits until `more` adds have been acknowledged from now on.
    async fn goes_on(&self, more: usize) {
        let from = self.acknowledged.load(Ordering::SeqCst);
        until("adds are acknowledged", async || {
            self.acknowledged.load(Ordering::SeqCst) >= from + more
        })
        .await;
    }

    async fn stop(self) -> Vec<(String, i64, i64)> {
        self.stop.store(true, Ordering::SeqCst);
        let ended = futures::future::join_all(self.adders).await;
        ended.into_iter().map(|it| it.expect("no panic")).collect()
    }
}

#[tokio::test]
async fn a_failover_by_hand_loses_no_add_and_counts_none_twice() {
    let cluster = Cluster::start(3, 1).await;
    let client = client(&cluster).await;
    let load = Load::start(&client, 16);
    load.goes_on(1_000).await;
    cluster.failover(cluster.replica_of(0, 0)).await;
    load.goes_on(1_000).await;
    for (name, known, unknown) in load.stop().await {
        let value = client.counter(&name).get().await.expect("read");
        assert!(
            (known..=known + unknown).contains(&value),
            "{name}: {value}, acknowledged {known}, unknown {unknown}"
        );
    }
}

#[tokio::test]
async fn a_crashed_primary_is_replaced_and_the_others_do_not_notice() {
    let cluster = Cluster::start_hasty(3, 1).await;
    let client = client(&cluster).await;
    let load = Load::start(&client, 16);
    load.goes_on(1_000).await;
    let mut served_by = Vec::new();
    for number in 0..16 {
        let key = format!("hr:c:{{load:{number}}}");
        served_by.push(cluster.owner_of(hedgerow::key::slot(key.as_bytes())).await);
    }
    cluster.nodes()[0].kill().await;
    cluster.is_primary(cluster.replica_of(0, 0)).await;
    load.goes_on(1_000).await;
    let mut hit = 0;
    for ((name, known, unknown), node) in load.stop().await.into_iter().zip(served_by) {
        let value = client.counter(&name).get().await.expect("read");
        hit += usize::from(node == 0);
        // What the replica had not received is lost with the primary; nothing is counted twice.
        assert!(
            value <= known + unknown,
            "{name}: {value} of {known} and {unknown}"
        );
        if node != 0 {
            assert_eq!((value, unknown), (known, 0), "{name} is served elsewhere");
        }
    }
    assert!(hit > 0, "the crash has hit some counters");
}

#[tokio::test]
async fn a_lone_call_that_meets_a_crash_is_answered_by_the_replica() {
    let cluster = Cluster::start_hasty(3, 1).await;
    let seeds = cluster.primaries().iter().map(|node| node.url());
    let builder = Client::builder().cluster(seeds);
    let patient = builder.deadline(Duration::from_secs(60));
    let client = patient.open().expect("good seeds");
    let counter = client.counter("views");
    counter.add(1).await.expect("added");
    let slot = hedgerow::key::slot(b"{views}");
    let node = cluster.owner_of(slot).await;
    until("the replica has it", async || {
        let replica = &cluster.nodes()[cluster.replica_of(node, 0)];
        let primary = &cluster.nodes()[node];
        let size: usize = primary.run(&["DBSIZE"]).await;
        replica.run::<usize>(&["DBSIZE"]).await == size
    })
    .await;
    cluster.nodes()[node].kill().await;
    // Nobody else is there to find out about the failover.
    assert_eq!(counter.get().await.expect("served by the replica"), 1);
}

#[tokio::test]
async fn a_frozen_primary_is_left_behind_and_its_locks_are_granted_with_greater_fences() {
    let cluster = Cluster::start_hasty(3, 1).await;
    let (one, two) = (client(&cluster).await, client(&cluster).await);
    let name = "invoice:7";
    let guard = one.lock(name).acquire().await.expect("free");
    let fence = guard.fence();
    let node = cluster.owner_of(hedgerow::key::slot(b"{b12}")).await;
    cluster.nodes()[node].stop();
    cluster.is_primary(cluster.replica_of(node, 0)).await;
    // Nobody can say what became of a release that the frozen one was asked for: it is repeated
    // behind, where the lock is served now.
    if let Err(error) = guard.release().await {
        assert!(error.is_indeterminate(), "{error}");
    }
    let lock = two.lock(name).wait(Duration::from_secs(600));
    let granted = bounded("the lock is granted by the new primary", lock.acquire()).await;
    assert!(granted.expect("granted").fence() > fence);
    cluster.nodes()[node].resume();
}

#[tokio::test]
async fn a_dead_primary_takes_no_values_of_others_along_and_clear_reaches_all_parts() {
    let cluster = Cluster::start(3, 0).await;
    let partial = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
    let _: Vec<String> = cluster.run_all(&partial).await;
    let client = client(&cluster).await;
    let minute = Duration::from_secs(60);
    let mut owners = Vec::new();
    // Of several caches: none of them lives on one primary.
    let cache = |number: usize| client.cache(&format!("c{}", number % 4));
    for number in 0..80 {
        let name = format!("n{number}");
        let stored = cache(number).set(&name, &number, minute).await;
        stored.expect("stored");
        let slot = hedgerow::key::slot(format!("{{c{}:{name}}}", number % 4).as_bytes());
        owners.push(cluster.owner_of(slot).await);
    }
    cache(0).clear().await.expect("cleared");
    for number in 0..80 {
        let found = cache(number).get::<usize>(&format!("n{number}")).await;
        let cleared = number % 4 == 0;
        assert_eq!(found.expect("read").is_none(), cleared, "{number}");
    }
    cluster.nodes()[0].kill().await;
    let mut found = 0;
    for (number, owner) in owners.into_iter().enumerate() {
        if owner != 0 && number % 4 != 0 {
            let value = cache(number).get::<usize>(&format!("n{number}")).await;
            assert_eq!(value.expect("served").as_deref(), Some(&number));
            found += 1;
        }
    }
    assert!(found > 0, "others serve values");
}

/// Slots 5120 to 6143 share a format key, whose slot is on the second of three primaries; the first
/// of these slots are on the first.
#[tokio::test]
async fn a_dead_primary_takes_no_counters_of_others_along() {
    let cluster = Cluster::start(3, 0).await;
    let partial = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
    let _: Vec<String> = cluster.run_all(&partial).await;
    let client = client(&cluster).await;
    let in_slots = |slots: std::ops::Range<u16>| {
        let mut names = (0..).map(|number| format!("views:{number}"));
        let found = names.find(|name| slots.contains(&hedgerow::key::slot(name.as_bytes())));
        client.counter(&found.expect("there is no end of names"))
    };
    let (apart, beside) = (in_slots(5120..5460), in_slots(5462..6144));
    apart.add(1).await.expect("added");
    beside.add(1).await.expect("added");
    cluster.nodes()[1].kill().await;
    let hasty = beside.add(1).deadline(Duration::from_millis(500)).await;
    assert!(hasty.is_err(), "its server is gone");
    let added = apart.add(1).await.expect("its server is well");
    assert_eq!(added.value, 2);
}

/// As above; the second primary hangs, after a connection on which nobody has asked for the format.
#[tokio::test]
async fn a_primary_that_hangs_keeps_counters_of_others_for_moments_only() {
    let cluster = Cluster::start(3, 0).await;
    let partial = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
    let _: Vec<String> = cluster.run_all(&partial).await;
    let client = client(&cluster).await;
    let counter = |slots: std::ops::Range<u16>| {
        let mut names = (0..).map(|number| format!("views:{number}"));
        let found = names.find(|name| slots.contains(&hedgerow::key::slot(name.as_bytes())));
        client.counter(&found.expect("there is no end of names"))
    };
    let apart = counter(5120..5460);
    apart.add(1).await.expect("added");
    let node = &cluster.nodes()[1];
    let mut keys = (0..).map(|number| format!("k{number}"));
    let served = |key: &String| {
        (5462..10_922).contains(&hedgerow::key::slot(format!("{{c:{key}}}").as_bytes()))
    };
    let key = keys.find(served).expect("there is no end of names");
    let killed: usize = node
        .run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .await;
    assert!(killed > 0, "it was connected");
    let found = client.cache("c").get::<i32>(&key).await;
    assert_eq!(found.expect("connected anew"), None);
    node.stop();
    // Half of the time of each would be more than a minute.
    let adds = async {
        for number in 2..=10 {
            let added = apart.add(1).await.expect("its server is well");
            assert_eq!(added.value, number);
        }
    };
    bounded("they are added", adds).await;
    node.resume();
    apart.add(1).await.expect("added");
}

/// One of the seeds is no part of the cluster any more, and refuses; the other greets slowly.
#[tokio::test]
async fn a_seed_that_refuses_does_not_speak_for_those_that_have_not_answered() {
    let cluster = Cluster::start(1, 0).await;
    let stale = Recipe::new().on(Port::free()).password("another");
    let stale = stale.start().await;
    let slow = Proxy::before_node(&cluster.nodes()[0]).await;
    let greeting = slow.on(Request::every().named("HELLO"), Act::Hold);
    let seeds = [stale.url(), slow.url().to_owned()];
    let client = patient(Client::builder().cluster(seeds)).open();
    let counter = client.expect("good seeds").counter("views");
    let hasty = counter.add(1).deadline(Duration::from_millis(600)).await;
    let error = hasty.expect_err("nobody has told the slots");
    assert!(error.is_retryable(), "{error}");
    assert!(greeting.hits() > 0, "it was asked");
    greeting.deliver();
    counter.add(1).await.expect("the seed has greeted");
}

#[tokio::test]
async fn seeds_tell_where_to_go_when_all_known_primaries_are_silent() {
    let port = Port::free();
    let cluster = Cluster::start_announcing(&[port.number()]).await;
    let node = &cluster.nodes()[0];
    let proxy = Proxy::on_port(port, node.port()).await;
    let builder = Client::builder().cluster([proxy.url().to_owned(), node.url()]);
    let client = builder.deadline(Duration::from_secs(1)).open();
    let counter = client.expect("good seeds").counter("views");
    counter.add(1).await.expect("added");

    let moved_to = node.port().to_string();
    node.run::<()>(&["CONFIG", "SET", "cluster-announce-port", &moved_to])
        .await;
    let greetings = proxy.on(Request::every().named("HELLO"), Act::Vanish);
    proxy.lose_next_reply();
    until("it is served where the seed says", async || {
        counter.get().await.is_ok()
    })
    .await;
    assert_eq!(counter.get().await.expect("served"), 1);
    // Nobody waited for attempts to connect to become rare.
    assert!(greetings.hits() <= 3, "{} greetings", greetings.hits());
}

#[tokio::test]
async fn a_client_that_starts_during_an_outage_of_its_cluster_is_spared_the_waiting() {
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("it is bound");
    let builder = Client::builder().cluster([format!("redis://{address}")]);
    let deadline = Duration::from_millis(400);
    let client = builder.cache_deadline(deadline).open();
    let cache = client.expect("a good seed").cache("c");
    for call in ["get", "set"] {
        until("the breaker opens", async || {
            let outcome = match call {
                "get" => cache.get::<String>("k").await.map(drop),
                _ => cache.set("k", &"v", Duration::from_secs(60)).await,
            };
            let error = outcome.expect_err("nobody tells the slots");
            assert!(error.kind().is_outage(), "{call}: {error}");
            error.kind() == ErrorKind::CircuitOpen
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_no_cluster_is_told() {
    let server = crate::support::server::Server::start_single().await;
    for (seeds, kind) in [
        (vec![], ErrorKind::InvalidInput),
        (
            vec!["redis://127.0.0.1:1/3".to_owned()],
            ErrorKind::InvalidInput,
        ),
        (vec![server.url().to_owned()], ErrorKind::InvalidInput),
    ] {
        let error = Client::builder()
            .cluster(seeds)
            .open()
            .expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
    }
    let node = crate::support::topology::Recipe::new()
        .on(crate::support::topology::Port::free())
        .start()
        .await;
    let client = Client::builder().cluster([node.url()]).open();
    let error = client
        .expect("a seed")
        .ping()
        .await
        .expect_err("no cluster");
    assert!(
        error.to_string().contains("not part of a cluster"),
        "{error}"
    );
}
