//! A private server for one test, and what tests do to it behind the crate's back.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hedgerow::embedded;
use hedgerow::{Client, ClientBuilder};
use redis::aio::MultiplexedConnection;
use tokio::net::UnixStream;

use crate::wait::until;

/// A real server of the test's own; it ends with the test, however that ends.
pub struct Server {
    server: embedded::Server,
    admin: MultiplexedConnection,
    /// The one that came back after a kill.
    again: Option<Again>,
}

/// A server on the socket of a killed one; ends as that would have.
struct Again(Child);

impl Server {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(arguments: &[&str]) -> Self {
        let mut all = vec!["--enable-debug-command", "yes"];
        all.extend(arguments);
        let server = embedded::Server::start_with(&all)
            .await
            .expect("a server starts");
        let admin = connection(server.url()).await;
        Self {
            server,
            admin,
            again: None,
        }
    }

    pub fn url(&self) -> &str {
        self.server.url()
    }

    /// A client of its own: own connections, own keepers, own flights, as another process has.
    pub async fn client(&self) -> Client {
        self.builder().connect().await.expect("a good URL")
    }

    pub fn builder(&self) -> ClientBuilder {
        Client::builder().url(self.url())
    }

    /// Runs a command as the administrator.
    pub async fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_run(words)
            .await
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub async fn try_run<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut self.admin.clone()).await
    }

    /// Names of all keys that match.
    pub async fn keys(&self, pattern: &str) -> Vec<String> {
        self.run(&["KEYS", pattern]).await
    }

    /// A digest of the whole data set: equal before and after a call that changed nothing.
    pub async fn digest(&self) -> String {
        self.run(&["DEBUG", "DIGEST"]).await
    }

    pub async fn pid(&self) -> u32 {
        let info: String = self.run(&["INFO", "server"]).await;
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix("process_id:"));
        line.and_then(|pid| pid.trim().parse().ok())
            .expect("INFO names the process")
    }

    /// Kills the server, which loses all of its data; its socket refuses connections from then on.
    pub async fn kill(&self) -> Killed {
        let info: String = self.run(&["INFO", "server"]).await;
        let executable = info
            .lines()
            .find_map(|line| line.strip_prefix("executable:"))
            .expect("INFO names the executable");
        signal(self.pid().await, "KILL");
        let socket = self.url().trim_start_matches("unix://").to_owned();
        until("the socket refuses", async || {
            UnixStream::connect(&socket).await.is_err()
        })
        .await;
        Killed {
            executable: executable.to_owned(),
            socket,
        }
    }

    /// Starts a new, empty one on the socket of a killed server.
    pub async fn start_again(&mut self, killed: Killed) {
        let child = Command::new("/bin/sh")
            .args(["-c", UNTIL_STDIN_CLOSES, &killed.executable])
            .args(["--port", "0", "--save", "", "--unixsocket", &killed.socket])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("a shell");
        self.again = Some(Again(child));
        until("the socket accepts", async || {
            UnixStream::connect(&killed.socket).await.is_ok()
        })
        .await;
        self.admin = connection(self.url()).await;
    }

    /// Kills all connections whose `CLIENT LIST` name ends in `suffix`; returns how many.
    pub async fn kill_connections(&self, suffix: &str) -> usize {
        let list: String = self.run(&["CLIENT", "LIST"]).await;
        let mut killed = 0;
        for line in list.lines() {
            let field = |name: &str| {
                line.split(' ')
                    .find_map(|part| part.strip_prefix(name))
                    .unwrap_or_default()
                    .to_owned()
            };
            if field("name=").ends_with(suffix) && !suffix.is_empty() {
                killed += self
                    .try_run::<usize>(&["CLIENT", "KILL", "ID", &field("id=")])
                    .await
                    .unwrap_or(0);
            }
        }
        killed
    }
}

/// What is known of a server that was killed.
pub struct Killed {
    executable: String,
    socket: String,
}

impl Drop for Again {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

pub async fn connection(url: &str) -> MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(Some(Duration::from_secs(10)));
    redis::Client::open(url)
        .expect("a good URL")
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("the server accepts")
}

/// Sends a signal, such as `STOP`, `CONT` or `KILL`, to a process.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "kill -{name} {pid}"
    );
}

/// Runs a command until the standard input closes, which it does when this process ends.
const UNTIL_STDIN_CLOSES: &str = r#""$0" "$@" </dev/null &
server=$!
trap 'kill -KILL $server' EXIT
read -r _"#;
