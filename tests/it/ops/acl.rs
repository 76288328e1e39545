//! The rule for an ACL user: it names what the sources send and nothing else, and a cluster needs
//! no more. That every primitive lives with it is shown by the whole suite on
//! `HEDGEROW_TOPOLOGY=acl`.

use std::collections::BTreeSet;
use std::time::Duration;

use hedgerow::{Client, ErrorKind, cache::ReadFrom};
use redis::Value;

use crate::support::lua;
use crate::support::server::Server;
use crate::support::topology::{Cluster, Sentinels};
use crate::support::wait::{patient, queued, until};

#[test]
fn the_rule_names_the_commands_of_the_sources_and_no_others() {
    assert_eq!(granted(&rule("hr")), sent(is_usual));
}

#[test]
fn the_rule_of_sentinels_names_what_they_are_asked() {
    let mut asked = sent(is_for_sentinels);
    // Of any connection.
    asked.extend(["ping", "client|setname"].map(str::to_owned));
    assert_eq!(granted(Client::required_sentinel_acl()), asked);
}

#[test]
fn the_rule_of_preflight_names_what_it_asks_beyond_the_other() {
    let asked = sent(is_preflight);
    let granted: BTreeSet<String> = granted(Client::preflight_acl());
    let known = sent(is_usual);
    let beyond: BTreeSet<String> = asked.difference(&known).cloned().collect();
    assert_eq!(granted, beyond);
}

#[test]
fn the_rule_in_the_documentation_is_the_rule() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/keys-and-scripts.md");
    let text = std::fs::read_to_string(path).expect("readable");
    let documented = text
        .split("```")
        .find(|block| block.contains("clearselectors"));
    let words: Vec<&str> = documented.expect("a rule").split_whitespace().collect();
    assert_eq!(words.join(" "), rule("hr"));
}

#[test]
fn commands_are_found_however_they_are_put_together() {
    for (text, command) in [
        (r#"redis::cmd("PING")"#, "ping"),
        (
            "redis::cmd(\"CLIENT\");\n name\n  .arg(\"SETNAME\")",
            "client|setname",
        ),
        (r#"let x = plain("GET", key);"#, "get"),
        (
            r#"let mut c = Cmd::with_capacity(1, 2); c.arg("MGET");"#,
            "mget",
        ),
        (r#"redis::Cmd::new().arg("SET")"#, "set"),
        (r#"pipeline.cmd("HSET")"#, "hset"),
    ] {
        assert_eq!(
            commands(text),
            BTreeSet::from([command.to_owned()]),
            "{text}"
        );
    }
    let two = r#"let mut c = Cmd::with_capacity(1, 2); c.arg(if one { "GET" } else { "MGET" });"#;
    assert_eq!(commands(two).len(), 2);
}

#[test]
#[should_panic(expected = "no literal")]
fn a_command_that_is_no_literal_is_seen() {
    commands("redis::cmd(name)");
}

#[test]
fn a_namespace_is_spelt_so_that_it_matches_itself_only() {
    let starts = |namespace: &str, patterns: &str| {
        let rule = rule(namespace);
        let start = format!("clearselectors resetkeys resetchannels -@all {patterns} +");
        assert!(rule.starts_with(&start), "{rule}");
    };
    starts("hr", "~hr:* &hr:*");
    starts("my-shop.eu", "~my-shop.eu:* &my-shop.eu:*");
    starts("a*b?[c]\\", r"~a\*b\?\[c\]\\:* &a\*b\?\[c\]\\:*");
    starts("{x}", "~%7Bx%7D:* &%7Bx%7D:*");
    for none in ["", "two words", &"x".repeat(1025)] {
        let error = Client::required_acl(none).expect_err("no rule");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{none:?}");
    }
}

#[tokio::test]
async fn a_cluster_with_a_slot_on_its_way_needs_no_more() {
    let cluster = Cluster::start(2, 0).await;
    let line = format!("ACL SETUSER least on >privilege {}", rule("hr"));
    let words: Vec<&str> = line.split(' ').collect();
    cluster.run_all::<Value>(&words).await;
    let seeds = cluster.nodes().iter();
    let seeds = seeds.map(|node| format!("redis://least:privilege@{}", node.address()));
    let client = patient(Client::builder().cluster(seeds));
    let client = client.open().expect("good URLs");
    client.ping().await.expect("all answer");

    let key = "hr:c:{views}";
    let slot = hedgerow::key::slot(key.as_bytes());
    let from = cluster.owner_of(slot).await;
    let counter = client.counter("views");
    counter.add(1).await.expect("counted");
    let migration = cluster.migrate(slot, 1 - from).await;
    migration.carry(key).await;
    assert_eq!(counter.add(1).await.expect("asked elsewhere").value, 2);
    let limited = counter.add(1).saturating().await;
    assert_eq!(limited.expect("asked elsewhere").value, 3);
    assert_eq!(counter.get().await.expect("asked elsewhere"), 3);
    migration.finish().await;
    assert_eq!(counter.add(1).await.expect("moved").value, 4);

    let guard = client.lock("a").acquire().await.expect("free");
    let waiting = client.lock("a").wait(Duration::from_secs(60));
    let waiting = tokio::spawn(async move { waiting.acquire().await });
    queued(&client.lock("a"), 1).await;
    guard.release().await.expect("held");
    let guard = waiting.await.expect("no panic").expect("granted");
    guard.release().await.expect("held");
    for log in cluster.run_all::<Vec<Value>>(&["ACL", "LOG"]).await {
        assert!(log.is_empty(), "{log:?}");
    }
}

#[tokio::test]
async fn sentinels_and_replicas_need_no_more() {
    let sentinels = Sentinels::start().await;
    let setuser = |rule: &str| format!("ACL SETUSER least on >privilege {rule}");
    let (data, watch) = (
        setuser(&rule("hr")),
        setuser(Client::required_sentinel_acl()),
    );
    let (nodes, watchers) = (sentinels.data().nodes(), sentinels.sentinels());
    for (nodes, line) in [(nodes, &data), (watchers, &watch)] {
        let words: Vec<&str> = line.split(' ').collect();
        for node in nodes {
            let _: Value = node.run(&words).await;
        }
    }
    let urls = watchers.iter();
    let urls = urls.map(|node| format!("redis://least:privilege@{}", node.address()));
    let client = Client::builder().sentinels(urls, Sentinels::NAME);
    let client = patient(client)
        .credentials(hedgerow::client::Credentials::user("least", "privilege"))
        .open();
    let client = client.expect("good URLs");
    let cache = client.cache("k").read_from(ReadFrom::PreferReplica);
    cache
        .set("v", &1, Duration::from_secs(600))
        .await
        .expect("stored");
    until("a replica has answered a read", async || {
        assert_eq!(
            cache.get::<u8>("v").await.expect("read").as_deref(),
            Some(&1)
        );
        let mut reads = 0;
        for index in 0..2 {
            let replica = sentinels.data().replica(index);
            let stats = replica.info("commandstats", "cmdstat_mget").await;
            let stat = replica.info("commandstats", "cmdstat_get").await;
            reads += usize::from(!stats.is_empty() || !stat.is_empty());
        }
        reads > 0
    })
    .await;
    let preflight = client.preflight().await.expect("an answer");
    assert!(preflight.is_ok(), "{preflight}");
    for node in nodes.iter().chain(watchers) {
        let log: Vec<Value> = node.run(&["ACL", "LOG"]).await;
        let log = format!("{log:?}");
        // What preflight asks beyond the rule is refused, and told.
        assert!(
            !log.contains("least") || log.contains("config|get"),
            "{log}"
        );
    }
}

#[tokio::test]
async fn a_database_in_the_url_is_chosen() {
    let server = Server::start_single().await;
    let line = format!("ACL SETUSER least on >privilege {}", rule("hr"));
    let words: Vec<&str> = line.split(' ').collect();
    let _: Value = server.run(&words).await;
    let url = format!("{}?db=3&user=least&pass=privilege", server.url());
    let client = Client::open(&url).expect("a good URL");
    client.counter("a").add(1).await.expect("counted");
    let keyspace: String = server.run(&["INFO", "keyspace"]).await;
    assert!(keyspace.contains("db3:keys=2"), "{keyspace}");
}

fn rule(namespace: &str) -> String {
    Client::required_acl(namespace).expect("a good namespace")
}

/// The commands of a rule.
fn granted(rule: &str) -> BTreeSet<String> {
    let words = rule.split(' ').filter_map(|word| word.strip_prefix('+'));
    words.map(str::to_owned).collect()
}

/// The commands that the crate sends, by themselves and inside scripts, as a rule spells them.
fn sent(of: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, text) in lua::sources() {
        let path = path.display().to_string();
        if of(&path) && !path.ends_with("acl.rs") && !path.ends_with("/tests.rs") {
            found.extend(commands(&text));
            // The driver sends this for us.
            if text.contains(".set_db(") {
                found.insert("select".to_owned());
            }
        }
    }
    if of("") {
        for script in lua::scripts() {
            for call in lua::calls(&script.whole()) {
                let call = call.expect("commands of scripts are literals");
                found.insert(call.command.to_ascii_lowercase());
            }
        }
    }
    // The server asks nobody for the right to say hello, or who he is.
    found.remove("hello");
    found.remove("auth");
    found
}

fn is_usual(path: &str) -> bool {
    !is_preflight(path) && !is_for_sentinels(path)
}

/// What is asked of sentinels stands in one file.
fn is_for_sentinels(path: &str) -> bool {
    path.ends_with("sentinel/wire.rs")
}

fn is_preflight(path: &str) -> bool {
    path.contains("preflight")
}

/// The commands that a source file puts together.
fn commands(text: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for start in [
        "redis::cmd(",
        " plain(",
        "Cmd::with_capacity(",
        "Cmd::new(",
        ".cmd(",
    ] {
        for (at, _) in text.match_indices(start) {
            let rest = &text[at + start.len()..];
            let defines = rest.starts_with("name: &str") || text[..at].ends_with("fn");
            // Of `plain`, whose callers are looked at.
            if defines || rest.starts_with("4, bytes);\n    command.arg(name).arg(key") {
                continue;
            }
            let literals = match start {
                "Cmd::with_capacity(" | "Cmd::new(" => literals(first_argument(rest)),
                _ => literals(rest.split([')', ',']).next().unwrap_or_default()),
            };
            if let [container] = literals.as_slice()
                && ["CLIENT", "CLUSTER", "CONFIG", "ACL", "SENTINEL", "SCRIPT"].contains(container)
            {
                let sub = self::literals(first_argument(rest));
                let whole = format!("{container}|{}", sub.first().expect("a sub-command"));
                found.insert(whole.to_ascii_lowercase());
                continue;
            }
            assert!(
                !literals.is_empty(),
                "no literal: {start}{}",
                &rest[..rest.len().min(40)]
            );
            found.extend(literals.iter().map(|literal| literal.to_ascii_lowercase()));
        }
    }
    found
}

/// What stands in the first `.arg(..)`.
fn first_argument(text: &str) -> &str {
    let argument = text.split(".arg(").nth(1).unwrap_or_default();
    argument.split(';').next().unwrap_or_default()
}

fn literals(text: &str) -> Vec<&str> {
    text.split('"').skip(1).step_by(2).collect()
}
