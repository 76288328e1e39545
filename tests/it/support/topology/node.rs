//! One server process with arguments of the test's choice.
//!
//! Invariant: as for `embedded::Server`, the process never outlives its [`Node`], nor this process:
//! a shell between the two waits for its standard input to close. The administrator comes over a
//! Unix socket in the node's own directory, so what answers is never a stranger on the same port.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult};
use tokio::net::UnixStream;

use super::{Port, binary};
use crate::support::server::signal;
use crate::support::wait::{bounded, until};

/// What a node is started with.
#[derive(Debug, Default)]
pub struct Recipe {
    arguments: Vec<String>,
    files: Vec<(String, String)>,
    environment: Vec<(String, PathBuf)>,
    password: Option<String>,
    port: Listen,
    sentinel: bool,
}

/// Where a node listens besides its administrator's socket.
#[derive(Debug, Default)]
enum Listen {
    #[default]
    Nowhere,
    Plain(Port),
    Tls(Port),
}

impl Recipe {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds arguments such as `["--maxmemory", "64mb"]`.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|&word| word.into()));
        self
    }

    /// Sets a variable of the server's environment.
    pub fn env(mut self, name: &str, value: &Path) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Listens on a TCP port.
    pub fn on(mut self, port: Port) -> Self {
        self.port = Listen::Plain(port);
        self
    }

    /// Listens on a TCP port for TLS only.
    pub fn on_tls(mut self, port: Port) -> Self {
        self.port = Listen::Tls(port);
        self
    }

    /// Puts a file into the node's directory, which is its working directory, before it starts.
    pub fn file(mut self, name: &str, text: String) -> Self {
        self.files.push((name.into(), text));
        self
    }

    /// The password of the default user, which the administrator gives.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self.with(&["--requirepass", password])
    }

    /// Runs as a sentinel, with the configuration in `text`.
    pub fn sentinel(mut self, text: String) -> Self {
        self.sentinel = true;
        self.file(SENTINEL, text)
    }

    /// Starts the node and waits until it answers.
    pub async fn start(self) -> Node {
        self.try_start().await.unwrap_or_else(|why| panic!("{why}"))
    }

    /// As [`start`](Self::start), but tells what the server had to say when it did not start, which
    /// may be that somebody took its port.
    pub async fn try_start(self) -> Result<Node, String> {
        let directory = tempfile::Builder::new()
            .prefix("hedgerow-node-")
            .tempdir()
            .expect("a temporary directory");
        for (name, text) in &self.files {
            std::fs::write(directory.path().join(name), text).expect("a new file");
        }
        let supervisor = supervised(&self, directory.path());
        let node = Node {
            recipe: self,
            directory,
            supervisor: Mutex::new(Some(supervisor)),
            admin: Mutex::new(None),
            pid: Mutex::new(0),
        };
        node.answers().await?;
        Ok(node)
    }
}

/// A running server. Everything about it can be done by whoever can see it.
#[derive(Debug)]
pub struct Node {
    recipe: Recipe,
    directory: tempfile::TempDir,
    supervisor: Mutex<Option<Child>>,
    admin: Mutex<Option<MultiplexedConnection>>,
    pid: Mutex<u32>,
}

impl Node {
    /// The TCP port.
    pub fn port(&self) -> u16 {
        match &self.recipe.port {
            Listen::Plain(port) | Listen::Tls(port) => port.number(),
            Listen::Nowhere => panic!("this node has a socket only"),
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Where clients connect: TCP if it listens there. Without credentials.
    pub fn url(&self) -> String {
        match &self.recipe.port {
            Listen::Plain(_) => format!("redis://{}", self.address()),
            Listen::Tls(_) => format!("rediss://{}", self.address()),
            Listen::Nowhere => format!("unix://{}", self.socket().display()),
        }
    }

    /// The administrator's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process id of the server, also while that is stopped.
    pub fn pid(&self) -> u32 {
        *self.pid.lock().expect("no panic")
    }

    /// Runs a command as the administrator.
    pub async fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_run(words)
            .await
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub async fn try_run<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let reply = command(words).query_async(&mut self.admin().await?).await;
        self.noticed(reply)
    }

    /// Runs a command as the administrator right behind `ASKING`.
    pub async fn try_ask<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("ASKING").ignore();
        pipeline.add_command(command(words));
        let reply = pipeline.query_async(&mut self.admin().await?).await;
        self.noticed(reply).map(|(reply,)| reply)
    }

    /// Runs a command that only asks, and again if the connection was cut: sentinels cut all of a
    /// node whose role they change.
    pub async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        match self.try_run(words).await {
            Ok(answer) => answer,
            Err(_) => self.run(words).await,
        }
    }

    /// Whether the server has a command, such as `getdel` or `cluster|migrateslots`.
    pub async fn knows(&self, command: &str) -> bool {
        let told: Vec<redis::Value> = self.ask(&["COMMAND", "INFO", command]).await;
        told != [redis::Value::Nil]
    }

    /// The value of a field of `INFO`, or nothing.
    pub async fn info(&self, section: &str, field: &str) -> String {
        let info: String = self.ask(&["INFO", section]).await;
        let value = info
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_default().trim().to_owned()
    }

    /// Connects anew, the next time, after a connection was lost.
    fn noticed<T>(&self, reply: RedisResult<T>) -> RedisResult<T> {
        reply.inspect_err(|error| {
            if error.is_unrecoverable_error() {
                self.forget_connections();
            }
        })
    }

    /// A digest of the whole data set.
    pub async fn digest(&self) -> String {
        self.run(&["DEBUG", "DIGEST"]).await
    }

    /// Stops the process: it keeps its port and connections, and says nothing.
    pub fn stop(&self) {
        signal(self.pid(), "STOP");
    }

    /// Lets a stopped process go on.
    pub fn resume(&self) {
        signal(self.pid(), "CONT");
    }

    /// Kills the process; what it was not told to keep is lost. Its port refuses from then on.
    pub async fn kill(&self) {
        *self.admin.lock().expect("no panic") = None;
        signal(self.pid(), "KILL");
        let socket = self.socket();
        until("the killed server is gone", async || {
            UnixStream::connect(&socket).await.is_err()
        })
        .await;
        end(&self.supervisor, KEEP);
    }

    /// Starts a killed node again, on the same port, in the same directory.
    pub async fn start_again(&self) {
        let supervisor = supervised(&self.recipe, self.directory.path());
        *self.supervisor.lock().expect("no panic") = Some(supervisor);
        self.answers().await.unwrap_or_else(|why| panic!("{why}"));
    }

    /// Makes the administrator connect anew, which must be done on another runtime.
    pub fn forget_connections(&self) {
        *self.admin.lock().expect("no panic") = None;
    }

    async fn admin(&self) -> RedisResult<MultiplexedConnection> {
        if let Some(connection) = self.admin.lock().expect("no panic").clone() {
            return Ok(connection);
        }
        let mut url = format!("unix://{}", self.socket().display());
        if let Some(password) = &self.recipe.password {
            url += &format!("?pass={password}");
        }
        let config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(Some(Duration::from_secs(10)));
        let connection = redis::Client::open(url)?
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        *self.admin.lock().expect("no panic") = Some(connection.clone());
        Ok(connection)
    }

    /// Waits until the new process answers and knows who it is.
    async fn answers(&self) -> Result<(), String> {
        let log = self.directory.path().join(LOG);
        let answered = bounded("the server answers", async {
            loop {
                if let Ok(info) = self.try_run::<String>(&["INFO", "server"]).await {
                    break Ok(info);
                }
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let refused = ["Failed listening", "FATAL CONFIG", "error while loading"];
                if refused.iter().any(|word| said.contains(word)) {
                    break Err(said);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let info = answered.await?;
        let pid = info
            .lines()
            .find_map(|line| line.strip_prefix("process_id:"));
        let pid = pid.and_then(|pid| pid.trim().parse().ok());
        *self.pid.lock().expect("no panic") = pid.expect("INFO names the process");
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&self.supervisor, b"");
    }
}

/// Closes the pipe, which ends the server, and waits for the shell, so that no zombie stays. What
/// is said last may be [`KEEP`].
fn end(supervisor: &Mutex<Option<Child>>, last: &[u8]) {
    let supervisor = supervisor
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    if let Some(mut supervisor) = supervisor {
        if let Some(mut pipe) = supervisor.stdin.take() {
            let _ = pipe.write_all(last);
        }
        let _ = supervisor.wait();
    }
}

pub fn command(words: &[&str]) -> redis::Cmd {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command
}

/// The server under a shell that outlives this process just long enough to clean up after it.
fn supervised(recipe: &Recipe, directory: &Path) -> Child {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", SUPERVISOR, "sh"])
        .arg(directory)
        .arg(binary());
    if recipe.sentinel {
        command.arg(directory.join(SENTINEL)).arg("--sentinel");
    } else {
        command.args(["--save", "", "--appendonly", "no"]);
        command.args(["--enable-debug-command", "yes"]);
    }
    match &recipe.port {
        Listen::Plain(port) => command.args(["--port", &port.number().to_string()]),
        Listen::Tls(port) => {
            command.args(["--port", "0", "--tls-port", &port.number().to_string()])
        }
        Listen::Nowhere => command.args(["--port", "0"]),
    };
    command
        .args(["--bind", "127.0.0.1", "--logfile", LOG, "--unixsocket"])
        .arg(directory.join("s"))
        .arg("--dir")
        .arg(directory)
        .args(&recipe.arguments)
        .envs(recipe.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell")
}

const LOG: &str = "log";
const SENTINEL: &str = "sentinel.conf";

/// Leaves the directory to the next process of the same node.
const KEEP: &[u8] = b"keep\n";

/// The server runs behind, in its directory; `read` returns when the pipe closes. A stopped server
/// can be killed, too.
const SUPERVISOR: &str = r#"
directory=$1; shift
cd "$directory" || exit 1
"$@" </dev/null >>log 2>&1 &
server=$!
trap 'kill -KILL $server 2>/dev/null; wait $server; [ -z "$directory" ] || rm -rf "$directory"' EXIT
trap '' INT TERM HUP
read -r keep && directory=
"#;
