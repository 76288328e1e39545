//! `preflight` on servers that lack something: each is found, named with its server, and nothing is
//! written.

use hedgerow::{
    Client, ErrorKind, preflight::FindingCode, preflight::Preflight, preflight::Severity,
};
use redis::Value;

use crate::support::server::{Server, connection};
use crate::support::topology::{Cluster, Node, Port, Recipe, Replicated, Sentinels, not_here};
use crate::support::wait::until;

#[tokio::test]
async fn the_least_rights_are_enough_and_what_they_leave_unknown_is_said() {
    let server = Server::start_on("acl").await;
    let client = server.client().await;
    client.counter("a").add(1).await.expect("counted");
    let before = server.digest().await;
    let preflight = client.preflight().await.expect("an answer");
    assert!(preflight.is_ok(), "{preflight}");
    let notes = told(&preflight, FindingCode::NotAsked);
    assert!(notes.contains("+config|get"), "{preflight}");
    assert_eq!(preflight.findings().len(), 1, "{preflight}");
    assert_eq!(server.digest().await, before, "nothing is written");
    // The optional part is refused to it, which the log shows.
    let _: Value = server.run(&["ACL", "LOG", "RESET"]).await;
}

#[tokio::test]
async fn with_the_rule_of_its_own_nothing_is_left_unknown() {
    let server = Server::start_single().await;
    let rule = format!("{} {}", rule(), Client::preflight_acl());
    let client = user(&server, &rule).await;
    let preflight = client.preflight().await.expect("an answer");
    assert_eq!(told(&preflight, FindingCode::NotAsked), "", "{preflight}");
    assert!(preflight.is_ok(), "{preflight}");
    let log: Vec<Value> = server.run(&["ACL", "LOG"]).await;
    assert!(log.is_empty(), "{log:?}");
}

#[tokio::test]
async fn each_command_that_is_not_allowed_is_named() {
    let server = Server::start_single().await;
    for word in rule().split(' ') {
        let Some(right) = word.strip_prefix('+') else {
            continue;
        };
        let client = user(&server, &format!("{} -{right}", rule())).await;
        let preflight = client.preflight().await.expect("an answer");
        assert!(!preflight.is_ok(), "{right}: {preflight}");
        let missing = told(&preflight, FindingCode::MissingRight);
        assert!(
            missing.contains(&format!("add `+{right}`")),
            "{right}: {missing}"
        );
    }
}

#[tokio::test]
async fn keys_and_channels_that_are_not_allowed_are_named() {
    let server = Server::start_single().await;
    let keys = rule().replace("~hr:*", "~other:*");
    let preflight = user(&server, &keys).await.preflight().await;
    let missing = told(&preflight.expect("an answer"), FindingCode::MissingRight);
    assert!(
        missing.contains("`~hr:*`") && missing.contains("hset"),
        "{missing}"
    );
    assert!(!missing.contains("channels"), "{missing}");
    let channels = rule().replace("&hr:*", "&other:*");
    let preflight = user(&server, &channels).await.preflight().await;
    let missing = told(&preflight.expect("an answer"), FindingCode::MissingRight);
    assert!(
        missing.contains("`&hr:*`") && missing.contains("spublish"),
        "{missing}"
    );
    assert!(!missing.contains("keys of"), "{missing}");
    // Reading is not enough.
    let reads = rule().replace("~hr:*", "%R~hr:*");
    let preflight = user(&server, &reads).await.preflight().await;
    let missing = told(&preflight.expect("an answer"), FindingCode::MissingRight);
    assert!(
        missing.contains("hset") && !missing.contains("hget"),
        "{missing}"
    );
}

#[tokio::test]
async fn settings_that_lose_data_or_connections_are_named() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let codes = async |settings: &[[&str; 2]]| {
        for [name, value] in settings {
            let _: Value = server.run(&["CONFIG", "SET", name, value]).await;
        }
        client.preflight().await.expect("an answer")
    };
    let found = codes(&[]).await;
    assert_eq!(
        severity(&found, FindingCode::NoPersistence),
        Some(Severity::Warning)
    );
    assert_eq!(found.findings().len(), 1, "a test's server: {found}");
    let found = codes(&[["appendonly", "yes"]]).await;
    assert_eq!(found.to_string(), "");
    let found = codes(&[["maxmemory", "100mb"]]).await;
    assert_eq!(
        severity(&found, FindingCode::Eviction),
        Some(Severity::Note)
    );
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let found = codes(&[["maxmemory-policy", policy]]).await;
        assert_eq!(
            severity(&found, FindingCode::Eviction),
            Some(Severity::Warning)
        );
        assert!(
            told(&found, FindingCode::Eviction).contains(policy),
            "{found}"
        );
    }
    let found = codes(&[["maxmemory", "0"], ["timeout", "300"]]).await;
    assert_eq!(
        severity(&found, FindingCode::IdleTimeout),
        Some(Severity::Warning)
    );
    assert!(found.is_ok(), "{found}");
    let full = [["maxmemory", "1"], ["maxmemory-policy", "noeviction"]];
    let found = codes(&full).await;
    assert_eq!(
        severity(&found, FindingCode::Refuses),
        Some(Severity::Blocker)
    );
    assert!(
        told(&found, FindingCode::Refuses).contains("OOM"),
        "{found}"
    );
}

#[tokio::test]
async fn a_replica_is_named_and_so_is_a_primary_that_does_not_wait_for_it() {
    let pair = Replicated::start(1).await;
    let found = preflight(pair.primary()).await;
    assert_eq!(
        severity(&found, FindingCode::NoMinReplicas),
        Some(Severity::Warning)
    );
    assert_eq!(severity(&found, FindingCode::Replica), None);
    let found = preflight(pair.replica(0)).await;
    assert_eq!(
        severity(&found, FindingCode::Replica),
        Some(Severity::Blocker)
    );
    assert!(told(&found, FindingCode::Replica).contains(&pair.replica(0).address()));
    let _: Value = pair
        .primary()
        .run(&["CONFIG", "SET", "min-replicas-to-write", "1"])
        .await;
    let found = preflight(pair.primary()).await;
    assert_eq!(
        severity(&found, FindingCode::NoMinReplicas),
        None,
        "{found}"
    );
}

#[tokio::test]
async fn what_is_named_as_something_else_than_it_is_is_told() {
    let cluster = Cluster::start(3, 0).await;
    let found = preflight(&cluster.nodes()[0]).await;
    assert_eq!(
        severity(&found, FindingCode::ClusterAsSingle),
        Some(Severity::Blocker)
    );
    let single = Recipe::new().on(Port::free()).start().await;
    let client = Client::builder().cluster([single.url()]);
    let client = client.open().expect("a good URL");
    let found = client.preflight().await.expect("an answer");
    assert_eq!(
        severity(&found, FindingCode::NotACluster),
        Some(Severity::Blocker)
    );
    assert!(found.to_string().contains(&single.address()), "{found}");
    let sentinels = Sentinels::start().await;
    let found = preflight(&sentinels.sentinels()[0]).await;
    assert_eq!(
        severity(&found, FindingCode::Sentinel),
        Some(Severity::Blocker)
    );
}

#[tokio::test]
async fn every_server_of_a_cluster_is_asked() {
    let cluster = Cluster::start(3, 0).await;
    let seeds = cluster.nodes().iter().map(Node::url);
    let client = Client::builder().cluster(seeds).open().expect("good URLs");
    client.ping().await.expect("all are up");
    let _: Value = cluster.nodes()[1]
        .run(&["CONFIG", "SET", "timeout", "300"])
        .await;
    let found = client.preflight().await.expect("an answer");
    let idle: Vec<_> = with(&found, FindingCode::IdleTimeout).collect();
    assert_eq!(idle.len(), 1, "{found}");
    assert_eq!(idle[0].server(), cluster.nodes()[1].address());
    assert_eq!(
        with(&found, FindingCode::FullCoverage).count(),
        3,
        "{found}"
    );
    assert!(found.is_ok(), "{found}");

    cluster.nodes()[2].kill().await;
    let found = client.preflight().await.expect("an answer of the others");
    let gone: Vec<_> = with(&found, FindingCode::Unreachable).collect();
    assert_eq!(gone.len(), 1, "{found}");
    assert_eq!(gone[0].server(), cluster.nodes()[2].address());
}

#[tokio::test]
async fn a_namespace_that_another_version_writes_in_another_format_is_told() {
    let server = Server::start_single().await;
    let client = server.client().await;
    client.counter("views").add(1).await.expect("added");
    let found = client.preflight().await.expect("an answer");
    assert_eq!(severity(&found, FindingCode::ForeignFormat), None);
    server.run::<()>(&["SET", "hr:f:{lock}", "3"]).await;
    let found = client.preflight().await.expect("an answer");
    assert!(!found.is_ok(), "{found}");
    let text = told(&found, FindingCode::ForeignFormat);
    assert_eq!(text.lines().count(), 1, "{found}");
    assert!(text.contains("lock") && text.contains("\"3\""), "{text}");

    let cluster = Cluster::start(3, 0).await;
    let seeds = cluster.nodes().iter().map(Node::url);
    let client = Client::builder().cluster(seeds).open().expect("good URLs");
    // One of those for each sixteenth of the slots.
    let key = "hr:f:{18}:counter";
    cluster.run::<()>(&["SET", key, "7"]).await;
    let found = client.preflight().await.expect("an answer");
    let foreign: Vec<_> = with(&found, FindingCode::ForeignFormat).collect();
    assert_eq!(foreign.len(), 1, "{found}");
    assert_eq!(foreign[0].server(), cluster.node_of(key).await.address());
    assert!(foreign[0].message().contains("\"7\""), "{found}");
}

#[tokio::test]
async fn commands_that_the_server_lacks_are_named() {
    let renamed = [
        "--rename-command",
        "HSET",
        "",
        "--rename-command",
        "EVAL",
        "",
    ];
    let server = Server::start_with(&renamed).await;
    let found = server.client().await.preflight().await.expect("an answer");
    assert_eq!(
        severity(&found, FindingCode::MissingCommand),
        Some(Severity::Blocker)
    );
    let missing = told(&found, FindingCode::MissingCommand);
    assert!(
        missing.contains("hset") && missing.contains("eval"),
        "{missing}"
    );
}

#[tokio::test]
async fn what_only_clusters_are_asked_is_not_missed_elsewhere() {
    let renamed = [
        "--rename-command",
        "CLUSTER",
        "",
        "--rename-command",
        "ASKING",
        "",
    ];
    let server = Server::start_with(&renamed).await;
    let found = server.client().await.preflight().await.expect("an answer");
    assert_eq!(severity(&found, FindingCode::MissingCommand), None);
    assert!(found.is_ok(), "{found}");
}

/// From Valkey 9.1 on Lua is a module, which may be absent.
#[tokio::test]
async fn a_server_that_has_no_lua_is_told() {
    let server = Server::start_with(&["--enable-module-command", "yes"]).await;
    let unloaded = server.try_run::<Value>(&["MODULE", "UNLOAD", "lua"]).await;
    if unloaded.is_err() {
        return not_here("Lua is no module that could be taken away");
    }
    let client = server.client().await;
    let found = client.preflight().await.expect("an answer");
    let scripts = severity(&found, FindingCode::NoScripts);
    assert_eq!(scripts, Some(Severity::Blocker), "{found}");
    let added = client.counter("a").add(1).within(0..=9).await;
    let error = added.expect_err("no Lua");
    assert_eq!(error.kind(), ErrorKind::Server, "{error}");
    assert!(!error.is_indeterminate(), "{error}");
}

#[tokio::test]
async fn nobody_who_answers_is_an_error_and_a_wrong_password_says_so() {
    let server = Server::start_single().await;
    let _: Value = server.run(&["CONFIG", "SET", "requirepass", "right"]).await;
    let client = server
        .builder()
        .deadline(std::time::Duration::from_millis(200));
    let client = client.open().expect("a good URL");
    let error = client.preflight().await.expect_err("no password");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
}

#[tokio::test]
async fn its_connections_end_with_it_and_a_brought_one_is_not_spoilt() {
    let server = Server::start_single().await;
    let client = server.client().await;
    client.ping().await.expect("up");
    let _ = client.preflight().await.expect("an answer");
    until("its connection is closed", async || {
        connections(&server).await == 2
    })
    .await;

    let brought = connection(server.url()).await;
    let client = Client::from_connection(brought.clone());
    let found = client.preflight().await.expect("an answer");
    assert!(found.is_ok(), "{found}");
    let mut brought = brought;
    let list: String = redis::cmd("CLIENT")
        .arg("INFO")
        .query_async(&mut brought)
        .await
        .expect("it lives");
    assert!(list.contains(" ssub=0"), "{list}");
    assert!(list.contains(" name= "), "{list}");
}

async fn preflight(node: &Node) -> Preflight {
    let client = Client::open(&node.url()).expect("a good URL");
    client.preflight().await.expect("an answer")
}

/// A client that comes as a user with this rule.
async fn user(server: &Server, rule: &str) -> Client {
    let line = format!("ACL SETUSER somebody on >secret {rule}");
    let words: Vec<&str> = line.split(' ').collect();
    let _: Value = server.run(&words).await;
    let url = format!("{}?user=somebody&pass=secret", server.url());
    Client::open(&url).expect("a good URL")
}

fn rule() -> String {
    Client::required_acl("hr").expect("a good namespace")
}

async fn connections(server: &Server) -> usize {
    let list: String = server.run(&["CLIENT", "LIST"]).await;
    list.lines().count()
}

fn with(
    found: &Preflight,
    code: FindingCode,
) -> impl Iterator<Item = &hedgerow::preflight::Finding> {
    let findings = found.findings().iter();
    findings.filter(move |finding| finding.code() == code)
}

fn severity(found: &Preflight, code: FindingCode) -> Option<Severity> {
    with(found, code)
        .map(hedgerow::preflight::Finding::severity)
        .next()
}

/// What is said under this code, with servers.
fn told(found: &Preflight, code: FindingCode) -> String {
    let lines: Vec<String> = with(found, code).map(ToString::to_string).collect();
    lines.join("\n")
}
