//! A private server for one test, and what tests do to it behind the crate's back.

use std::process::Command;
use std::time::Duration;

use hedgerow::embedded;
use hedgerow::{Client, ClientBuilder};
use redis::aio::MultiplexedConnection;

/// A real server of the test's own; it ends with the test, however that ends.
pub struct Server {
    server: embedded::Server,
    admin: MultiplexedConnection,
}

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
        Self { server, admin }
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
