//! Real child processes: this test binary, started again in a role.
//!
//! A child speaks lines on its standard output and takes lines on its standard input; it ends when
//! that closes, and so never outlives its parent. A role is one function here and one line in
//! [`play`]: it finds its arguments in `stage.arguments`, says lines and hears commands.

use std::future::IntoFuture as _;
use std::io::{BufRead as _, Write as _};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use hedgerow::Client;
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use crate::cache::herd_process::Herd;
use crate::cache::history::part::{Part, Script};
use crate::support::server::{connection, signal};
use crate::support::wait::{bounded, until};

/// A running child, as its parent sees it. Dropping it kills it.
pub struct Child {
    process: tokio::process::Child,
    said: Lines<BufReader<ChildStdout>>,
    commands: ChildStdin,
}

impl Child {
    /// Starts this binary again as `role`.
    pub fn start(role: &str, arguments: &[&str]) -> Self {
        Self::start_where(role, arguments, |_| {})
    }

    /// As [`start`](Self::start), in an environment that is changed by `change`.
    pub fn start_where(role: &str, arguments: &[&str], change: impl Fn(&mut Command)) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this binary has a path"));
        change(&mut process);
        // Tests are named without the crate.
        let module = module_path!().split_once("::").map(|(_, module)| module);
        let child = format!("{}::child", module.expect("it is no root"));
        let mut process = process
            .args(["--exact", &child, "--nocapture"])
            .env(ROLE, role)
            .env(ARGUMENTS, arguments.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the child starts");
        let said = process.stdout.take().expect("piped");
        let commands = process.stdin.take().expect("piped");
        Self {
            said: BufReader::new(said).lines(),
            commands,
            process,
        }
    }

    /// Gives a command.
    pub async fn tell(&mut self, line: &str) {
        let line = format!("{line}\n");
        let told = self.commands.write_all(line.as_bytes()).await;
        told.expect("the child listens");
    }

    /// The next line that the child says. What the test harness prints around it is left out.
    pub async fn says(&mut self) -> String {
        bounded("the child says something", async {
            loop {
                let line = self.said.next_line().await.expect("a pipe can be read");
                let line = line.expect("the child is alive");
                if let Some((_, said)) = line.split_once(MARK) {
                    return said.to_owned();
                }
            }
        })
        .await
    }

    /// Gives a command and returns what the child says next.
    pub async fn ask(&mut self, line: &str) -> String {
        self.tell(line).await;
        self.says().await
    }

    /// Sends a signal, such as `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        signal(self.process.id().expect("the child is alive"), name);
    }

    /// Kills the child and waits until it is gone.
    pub async fn kill(mut self) {
        self.process.kill().await.expect("the child can be killed");
    }
}

/// What a role has to do with.
struct Stage {
    arguments: Vec<String>,
    commands: mpsc::UnboundedReceiver<String>,
}

impl Stage {
    fn argument(&self, index: usize) -> &str {
        &self.arguments[index]
    }

    /// The next command of the parent.
    async fn hear(&mut self) -> String {
        match self.commands.recv().await {
            Some(command) => command,
            None => std::future::pending().await,
        }
    }
}

/// Says a line to the parent.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let said = writeln!(out, "\n{MARK}{line}").and_then(|()| out.flush());
    said.expect("the parent listens");
}

/// The door through which a child enters. In an ordinary run of the tests it does nothing.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let arguments = std::env::var(ARGUMENTS).unwrap_or_default();
    let (sender, commands) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            let _ = sender.send(line);
        }
        // The parent is gone.
        std::process::exit(0);
    });
    let stage = Stage {
        arguments: arguments.lines().map(str::to_owned).collect(),
        commands,
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(play(&role, stage));
}

async fn play(role: &str, stage: Stage) {
    match role {
        "crowd" => crowd(stage).await,
        "herd" => herd(stage).await,
        "history" => history(stage).await,
        "hold" => hold(stage).await,
        #[cfg(feature = "limit")]
        "limit" => limit(stage).await,
        "memoize" => memoize(stage).await,
        "own a server" => own_a_server(stage).await,
        "own a topology" => own_a_topology(stage).await,
        "permits" => permits(stage).await,
        "read the environment" => read_the_environment().await,
        unknown => panic!("no role is called {unknown}"),
    }
}

/// Makes many calls at once. Arguments: URL, how many.
///
/// Says `ready`. Command: `go`; says how many calls were refused and how many KiB the process has
/// grown by when the others wait, and ends.
async fn crowd(mut stage: Stage) {
    // However long it takes to make the calls: whoever waits must not have given up by then.
    let builder = Client::builder().url(stage.argument(0));
    let client = builder.deadline(Duration::from_secs(600)).connect().await;
    let client = client.expect("connected");
    let calls: usize = stage.argument(1).parse().expect("a number");
    say("ready");
    stage.hear().await;
    let before = resident();
    let (waiting, refused) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let polled = || waiting.load(Ordering::SeqCst) + refused.load(Ordering::SeqCst);
    for number in 0..calls {
        let add = client.counter("views").add(1).into_future();
        let (waiting, refused) = (waiting.clone(), refused.clone());
        tokio::spawn(async move {
            let mut add = add;
            match futures::poll!(&mut add) {
                Poll::Pending => {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    let _ = add.await;
                }
                Poll::Ready(outcome) => {
                    let error = outcome.expect_err("nobody answers");
                    assert_eq!(error.kind(), hedgerow::ErrorKind::Overloaded);
                    refused.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        // Those that are refused are gone before the next ones come.
        until("callers have asked", async || number < polled() + 256).await;
    }
    until("all have asked", async || polled() == calls).await;
    let (refused, grown) = (refused.load(Ordering::SeqCst), resident() - before);
    say(&format!("{refused} {grown}"));
}

/// How many KiB of memory this process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let digits = line.and_then(|line| line.trim().split(' ').next());
    digits.and_then(|it| it.parse().ok()).expect("a number")
}

/// Asks for keys, by many callers. Argument: URL.
///
/// Says `ready`. Commands: those of [`Herd::hear`].
async fn herd(mut stage: Stage) {
    let herd = Herd::of(stage.argument(0)).await;
    say("ready");
    loop {
        herd.hear(&stage.hear().await, say).await;
    }
}

/// Plays its part in a world of the history checker. Arguments: those of a [`Script`].
///
/// Says `ready`. Commands: those of [`Part::hear`], each answered by `done`; the last one by what
/// the process has done, and the end.
async fn history(mut stage: Stage) {
    let mut part = Part::of(Script::of(&stage.arguments)).await;
    say("ready");
    while let Some(done) = part.hear(&stage.hear().await).await {
        say(&done);
    }
    say(&part.deeds().words());
}

/// Asks a limit as often as it is let. Arguments: URL, name of the quota.
///
/// Says `ready`. Any command begins: says `going`. The next one ends it: says how many requests
/// were let through.
#[cfg(feature = "limit")]
async fn limit(mut stage: Stage) {
    let (url, quota) = (stage.argument(0).to_owned(), stage.argument(1).to_owned());
    crate::limit::processes::ask(&url, &quota, &mut stage.commands, say).await;
    std::future::pending().await
}

/// Acquires a lock and keeps it. Arguments: URL, name, lease (ms).
///
/// Says `held <fence>`. Commands: `state` -> `held` or `lost <reason>`; `write <value>` ->
/// `written` or `refused`; `release` -> `released` or `not released <kind>`, and ends.
async fn hold(mut stage: Stage) {
    let client = Client::builder()
        .url(stage.argument(0))
        .name("child")
        .open()
        .expect("a good URL");
    let mut resource = connection(stage.argument(0)).await;
    let lease = Duration::from_millis(stage.argument(2).parse().expect("a number"));
    let lock = client.lock(stage.argument(1)).lease(lease);
    let guard = lock.wait(Duration::from_secs(60)).acquire().await;
    let guard = guard.expect("granted");
    let fence = guard.fence().get();
    say(&format!("held {fence}"));
    loop {
        let command = stage.hear().await;
        match command.split_once(' ') {
            None if command == "state" => match guard.loss() {
                Some(reason) => say(&format!("lost {reason:?}")),
                None => say(if guard.is_held() { "held" } else { "neither" }),
            },
            Some(("write", value)) => {
                let written = fenced_write(&mut resource, fence, value).await;
                say(if written { "written" } else { "refused" });
            }
            None if command == "release" => {
                match guard.release().await {
                    Ok(()) => say("released"),
                    Err(error) => say(&format!("not released {:?}", error.kind())),
                }
                return;
            }
            _ => panic!("not a command: {command}"),
        }
    }
}

/// Asks for a page that takes a while to load. Arguments: URL, takeover (ms), loading time (ms).
///
/// Says `ready`. Command: the key; says `loading` if this process loads, then `got <page>`. Each
/// load is counted in the key `loads`.
async fn memoize(mut stage: Stage) {
    let millis =
        |index: usize| Duration::from_millis(stage.argument(index).parse().expect("a number"));
    let (takeover, think) = (millis(1), millis(2));
    let client = Client::builder()
        .url(stage.argument(0))
        .cache_deadline(Duration::from_secs(30))
        .open()
        .expect("a good URL");
    let cache = client.cache("pages").takeover(takeover);
    let database = connection(stage.argument(0)).await;
    client.ping().await.expect("an answer");
    say("ready");
    loop {
        let key = stage.hear().await;
        let mut database = database.clone();
        let load = move || async move {
            let load: i64 = redis::cmd("INCR")
                .arg("loads")
                .query_async(&mut database)
                .await?;
            say("loading");
            tokio::time::sleep(think).await;
            Ok::<_, redis::RedisError>(format!("page of load {load}"))
        };
        let page = cache.memoize(&key, Duration::from_secs(600), load).await;
        say(&format!("got {}", page.expect("a page")));
    }
}

/// Owns a private server until the end.
///
/// Says its URL.
async fn own_a_server(mut stage: Stage) {
    let server = hedgerow::embedded::Server::start().await;
    let server = server.expect("a server starts");
    say(server.url());
    stage.hear().await;
}

/// Owns a node and a pair until the end.
///
/// Says the process ids of the three servers.
async fn own_a_topology(mut stage: Stage) {
    let (node, pair) = crate::support::topology::own().await;
    let pids = [&node, pair.primary(), pair.replica(0)].map(|node| node.pid().to_string());
    say(&pids.join(" "));
    stage.hear().await;
}

/// Acquires permits and keeps them. Arguments: URL, name, limit, weight, lease (ms), metadata.
///
/// Says `held`. Commands: `state` -> `held` or `lost <reason>`; `release` -> `released` or `not
/// released <kind>`, and ends.
async fn permits(mut stage: Stage) {
    let client = Client::builder().url(stage.argument(0)).name("child");
    let client = client.open().expect("a good URL");
    let number = |index: usize| stage.argument(index).parse::<u32>().expect("a number");
    let (limit, weight, lease) = (number(2), number(3), number(4));
    let semaphore = client.semaphore(stage.argument(1), limit).weight(weight);
    let semaphore = semaphore.lease(Duration::from_millis(lease.into()));
    let semaphore = semaphore.metadata(stage.argument(5));
    let permits = semaphore.wait(Duration::from_secs(60)).acquire().await;
    let permits = permits.expect("granted");
    say("held");
    loop {
        match stage.hear().await.as_str() {
            "state" => match permits.loss() {
                Some(reason) => say(&format!("lost {reason:?}")),
                None => say(if permits.is_held() { "held" } else { "neither" }),
            },
            "release" => {
                match permits.release().await {
                    Ok(()) => say("released"),
                    Err(error) => say(&format!("not released {:?}", error.kind())),
                }
                return;
            }
            unknown => panic!("not a command: {unknown}"),
        }
    }
}

/// Adds 1 to the counter `views` on the server that the environment names.
///
/// Says the value, or the kind of the error and its text, and ends.
async fn read_the_environment() {
    let added = async { Client::from_env().await?.counter("views").add(1).await };
    match added.await {
        Ok(added) => say(&added.value.to_string()),
        Err(error) => say(&format!("{:?}: {error}", error.kind())),
    }
}

/// A resource that checks fences: writes `value` unless it has seen a greater fence.
pub async fn fenced_write(resource: &mut MultiplexedConnection, fence: u64, value: &str) -> bool {
    let applied: i64 = redis::cmd("EVAL")
        .arg(APPLY_IF_FENCE_NOT_OLDER)
        .arg(1)
        .arg("resource")
        .arg(fence)
        .arg(value)
        .query_async(resource)
        .await
        .expect("the resource answers");
    applied == 1
}

const APPLY_IF_FENCE_NOT_OLDER: &str = r"
local seen = tonumber(redis.call('HGET', KEYS[1], 'fence') or '0')
if tonumber(ARGV[1]) < seen then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'value', ARGV[2])
return 1";

const ROLE: &str = "HEDGEROW_TEST_ROLE";
const ARGUMENTS: &str = "HEDGEROW_TEST_ARGUMENTS";

/// What a child says begins with this; the harness prints lines of its own.
const MARK: &str = "child> ";
