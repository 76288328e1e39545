//! `get_many`: many values in few trips, each judged by itself.

use std::time::Duration;

use hedgerow::{Cache, Client, ErrorKind, Outage};

use crate::support::server::Server;
use crate::support::topology::{Cluster, Shards};
use crate::support::wait::{bounded, calls, patient};

const MINUTE: Duration = Duration::from_secs(60);

async fn texts(cache: &Cache, keys: &[&str]) -> Vec<Option<String>> {
    let found = bounded("values", cache.get_many::<String>(keys)).await;
    let found = found.expect("an answer").into_iter();
    found
        .map(|text| text.map(|text| text.as_ref().clone()))
        .collect()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn values_come_in_the_order_of_their_keys() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    for key in ["a", "b"] {
        cache.set(key, key, MINUTE).await.expect("stored");
    }
    cache.set("n", &7_u64, MINUTE).await.expect("stored");
    let keys = ["b", "missing", "a", "n", "b"];
    // The value of `n` is no text, which harms no other.
    let expected = [some("b"), None, some("a"), None, some("b")];
    assert_eq!(texts(&cache, &keys).await, expected);
    assert_eq!(texts(&cache, &[]).await, []);
}

#[tokio::test]
async fn a_bad_name_among_them_is_refused_before_anything_is_sent() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    let before = calls(&server, &["get", "mget"]).await;
    let error = cache
        .get_many::<String>(["a", ""])
        .await
        .expect_err("a bad name");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(calls(&server, &["get", "mget"]).await, before);
}

#[tokio::test]
async fn only_what_was_invalidated_is_missing() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    for (key, tag) in [("a", "odd"), ("b", "even"), ("c", "odd")] {
        let set = cache.set(key, key, MINUTE).tags([tag]);
        set.await.expect("stored");
    }
    cache.invalidate_tags(["odd"]).await.expect("an answer");
    let keys = ["a", "b", "c"];
    assert_eq!(texts(&cache, &keys).await, [None, some("b"), None]);
    cache.clear().await.expect("an answer");
    assert_eq!(texts(&cache, &keys).await, [None, None, None]);
}

#[tokio::test]
async fn however_many_entries_of_however_many_tags_cost_two_reads() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    let keys: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    for key in &keys {
        let tags = [format!("one:{key}"), format!("other:{key}")];
        let set = cache.set(key, key, MINUTE).tags(tags);
        set.await.expect("stored");
    }
    let before = calls(&server, &["get", "mget"]).await;
    let found = cache.get_many::<String>(&keys).await.expect("an answer");
    assert_eq!(found.iter().flatten().count(), 100);
    assert_eq!(calls(&server, &["get", "mget"]).await - before, 2);
}

#[tokio::test]
async fn values_of_all_slots_of_a_cluster_are_found_and_cleared() {
    let cluster = Cluster::start(2, 0).await;
    let seeds = cluster.nodes().iter().map(|node| node.url().to_owned());
    let client = patient(Client::builder().cluster(seeds)).open();
    let cache = client.expect("good URLs").cache("c");
    let keys: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    for key in &keys {
        cache.set(key, key, MINUTE).await.expect("stored");
    }
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let expected: Vec<Option<String>> = names.iter().map(|name| some(name)).collect();
    assert_eq!(texts(&cache, &names).await, expected);
    cache.clear().await.expect("an answer");
    assert!(texts(&cache, &names).await.iter().all(Option::is_none));
}

#[tokio::test]
async fn while_redis_is_out_nothing_is_found_or_the_call_fails() {
    let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
    let cache = client.cache("c");
    let keys = ["a", "b"];
    let error = cache.get_many::<String>(keys).await.expect_err("it is out");
    assert!(error.kind().is_outage(), "{error}");
    let cache = cache.outage(Outage::Bypass);
    assert_eq!(texts(&cache, &keys).await, [None, None]);
}

/// A client of two shards, which gives up soon.
fn of_shards(shards: &Shards) -> Client {
    let urls = shards.nodes().iter().map(|node| node.url());
    let shards = ["a", "b"].into_iter().zip(urls);
    let client = Client::builder().shards(shards.map(|(name, url)| (name, url, 1)));
    let client = client.cache_deadline(Duration::from_millis(500));
    client.open().expect("good URLs")
}

/// Stores more entries than one read asks for. Returns their keys, and which of them the first
/// shard has.
async fn spread(shards: &Shards, cache: &Cache) -> (Vec<String>, Vec<bool>) {
    let patient = cache.clone().deadline(MINUTE);
    let keys: Vec<String> = (0..250).map(|number| number.to_string()).collect();
    let mut here = Vec::new();
    for key in &keys {
        patient.set(key, key, MINUTE).await.expect("stored");
        let redis_key = format!("hr:v:{{c:{key}}}");
        here.push(shards.nodes()[0].run(&["EXISTS", &redis_key]).await);
    }
    assert!(here.contains(&true) && here.contains(&false));
    (keys, here)
}

#[tokio::test]
async fn what_other_servers_have_is_found_and_counted_while_one_is_out() {
    let shards = Shards::start(2).await;
    let client = of_shards(&shards);
    let cache = client.cache("c").outage(Outage::Bypass);
    let (keys, here) = spread(&shards, &cache).await;
    shards.nodes()[1].kill().await;
    let before = (cache.stats(), cache.bypassed());
    let found = bounded("values", cache.get_many::<String>(&keys)).await;
    let found = found.expect("bypassed");
    for ((key, is_here), value) in keys.iter().zip(&here).zip(&found) {
        let expected = is_here.then_some(key);
        assert_eq!(value.as_deref(), expected, "{key}");
    }
    let (now, hits) = (cache.stats(), found.iter().flatten().count() as u64);
    assert_eq!(now.hits - before.0.hits, hits);
    assert_eq!(
        now.misses, before.0.misses,
        "what was not read was not missed"
    );
    assert_eq!(cache.bypassed().reads - before.1.reads, 1, "one call");
    // Where outages are told, the call fails as a whole.
    let error = client.cache("c").get_many::<String>(&keys).await;
    let error = error.expect_err("one server is out");
    assert!(error.kind().is_outage(), "{error}");
}

#[tokio::test]
async fn a_server_that_hangs_takes_no_time_of_the_others_however_many_keys_it_has() {
    let shards = Shards::start(2).await;
    let cache = of_shards(&shards).cache("c").outage(Outage::Bypass);
    let (keys, here) = spread(&shards, &cache).await;
    // Before them, so that all reads that are made at a time wait for the server that hangs.
    let missing: Vec<String> = (0..4000)
        .map(|number| format!("missing {number}"))
        .collect();
    shards.nodes()[1].stop();
    let asked = missing.iter().chain(&keys);
    let found = bounded("values", cache.get_many::<String>(asked)).await;
    shards.nodes()[1].resume();
    let found = found.expect("bypassed").split_off(missing.len());
    for ((key, is_here), value) in keys.iter().zip(&here).zip(&found) {
        assert_eq!(value.as_deref(), is_here.then_some(key), "{key}");
    }
}

#[tokio::test]
async fn an_entry_whose_tag_is_on_a_server_that_is_out_hides_no_other() {
    let shards = Shards::start(2).await;
    let cache = of_shards(&shards).cache("c").outage(Outage::Bypass);
    let (keys, here) = spread(&shards, &cache).await;
    let key = keys.iter().zip(&here).find(|(_, is_here)| **is_here);
    let (tagged, _) = key.expect("the first shard has some");
    let patient = cache.clone().deadline(MINUTE);
    let tags = (0..30).map(|number| format!("t{number}"));
    let set = patient.set(tagged, tagged, MINUTE).tags(tags);
    set.await.expect("stored");
    shards.nodes()[1].kill().await;
    let found = bounded("values", cache.get_many::<String>(&keys)).await;
    let found = found.expect("bypassed");
    for ((key, is_here), value) in keys.iter().zip(&here).zip(&found) {
        let is_found = *is_here && key != tagged;
        assert_eq!(value.is_some(), is_found, "{key}");
    }
}
