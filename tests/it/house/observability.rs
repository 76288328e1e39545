//! What is told through `tracing`: all of it stands in one table, and none of it is secret.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedgerow::{Client, ErrorKind, embedded};

use crate::support::listener::Listener;
use crate::support::server::connection;

/// Target, level, name and fields, as the table spells them.
type Row = [String; 4];

#[test]
fn every_span_and_event_stands_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("docs/observability.md")).expect("readable");
    let documented: BTreeSet<Row> = table
        .lines()
        .filter(|line| line.starts_with("| `hedgerow"))
        .map(|line| {
            let cells: Vec<String> = line
                .split('|')
                .map(|cell| cell.trim().replace('`', ""))
                .collect();
            [1, 2, 3, 4].map(|column| cells[column].clone())
        })
        .collect();
    let mut told = BTreeSet::new();
    for path in sources(&root.join("src")) {
        let text = fs::read_to_string(&path).expect("readable");
        for (at, start) in text.match_indices("tracing::") {
            let rest = &text[at + start.len()..];
            let Some((macro_name, call)) = rest.split_once("!(") else {
                continue;
            };
            if macro_name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c == '_')
            {
                told.insert(row(macro_name, call));
                let call = call.split(");").next().unwrap_or_default();
                assert!(
                    !call.contains("real()"),
                    "a name is shown, or hidden: {call}"
                );
            }
        }
    }
    assert!(told.len() > 20, "the source is read: {told:?}");
    let missing: Vec<_> = told.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&told).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "missing: {missing:#?}, gone: {gone:#?}"
    );
}

#[tokio::test]
async fn no_value_password_or_token_is_ever_told() {
    const SECRETS: [&str; 3] = ["pa55word", "987654321", "sesame"];
    let listener = Listener::start();
    // Without `INCRBY` the server quotes what it was sent.
    let arguments = [
        "--requirepass",
        SECRETS[0],
        "--rename-command",
        "INCRBY",
        "",
    ];
    let server = embedded::Server::start_with(&arguments)
        .await
        .expect("a server");
    let url = format!("{}?pass={}", server.url(), SECRETS[0]);
    let client = Client::open(&url).expect("a good URL");
    let mut admin = connection(&url).await;
    let mut seen = format!("{client:?}");

    let error = client
        .counter("c")
        .add(987_654_321)
        .await
        .expect_err("no such command");
    assert_eq!(error.kind(), ErrorKind::Server);
    seen += &format!("{error} {error:?}");
    let scripted = client.counter("c").add(987_654_321).saturating().await;
    scripted.expect("a script of its own");

    let lock = client.lock("l");
    let guard = lock.acquire().await.expect("free");
    let [key]: [String; 1] = redis::cmd("KEYS")
        .arg("*:lock:l")
        .query_async(&mut admin)
        .await
        .expect("one");
    let held: String = redis::cmd("GET")
        .arg(key)
        .query_async(&mut admin)
        .await
        .expect("held");
    let owner = held.split(' ').nth(2).expect("an id").to_owned();
    seen += &format!("{guard:?} {lock:?}");
    let waiter = Client::open(&url).expect("a good URL").lock("l");
    let error = waiter
        .wait(Duration::from_millis(50))
        .acquire()
        .await
        .expect_err("held");
    seen += &format!("{error} {error:?}");
    lock.break_lock().await.expect("broken");
    guard.lost().await;

    let cache = client.cache("k");
    let load = || async { Ok::<_, std::io::Error>("sesame".to_owned()) };
    let minute = Duration::from_secs(60);
    for _ in 0..2 {
        cache
            .memoize("v", minute, load)
            .tags(["t"])
            .await
            .expect("loaded");
    }
    assert!(
        cache.get::<u64>("v").await.expect("read").is_none(),
        "of another type"
    );
    cache.set("v", &"sesame", minute).await.expect("set");
    cache.clear().await.expect("cleared");
    cache
        .memoize("v", minute, load)
        .await
        .expect("loaded again");

    seen += &listener.told();
    for wanted in [
        "connected",
        "acquired",
        "lost",
        "hit",
        "miss",
        "stored",
        "foreign",
        "uploading",
        "invalidated",
    ] {
        assert!(seen.contains(wanted), "{wanted} was told: {seen}");
    }
    for secret in SECRETS.into_iter().chain([owner.as_str()]) {
        assert!(!seen.contains(secret), "{secret} was told: {seen}");
    }
}

/// What a call of a macro of `tracing` tells. `call` begins behind its opening parenthesis.
fn row(macro_name: &str, call: &str) -> Row {
    let (mut parts, mut depth, mut quoted) = (vec![String::new()], 0, false);
    for character in call.chars() {
        match character {
            '"' => quoted = !quoted,
            '(' | '[' if !quoted => depth += 1,
            ')' if !quoted && depth == 0 => break,
            ')' | ']' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("one at least").push(character);
    }
    let (mut target, mut name, mut fields) = (String::new(), String::new(), Vec::new());
    for part in parts
        .iter()
        .map(|part| part.trim())
        .filter(|part| !part.is_empty())
    {
        if let Some(of) = part.strip_prefix("target:") {
            target = of.trim().replace('"', "");
        } else if part.starts_with('"') {
            name = part.replace('"', "");
        } else {
            let field = part.split(" = ").next().unwrap_or(part);
            fields.push(field.trim_start_matches(['%', '?']).to_owned());
        }
    }
    [
        target,
        macro_name.replace('_', " "),
        name,
        fields.join(", "),
    ]
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder).expect("readable") {
        let path = file.expect("readable").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}
