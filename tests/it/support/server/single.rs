//! One plain server of the test's own, which can be killed and come back.

use std::process::{Child, Command, Stdio};

use hedgerow::embedded;
use redis::aio::MultiplexedConnection;
use tokio::net::UnixStream;

use super::{connection, signal};
use crate::support::topology::{binary, command};
use crate::support::wait::until;

/// A real server of the test's own; it ends with the test, however that ends.
pub struct Single {
    server: embedded::Server,
    admin: MultiplexedConnection,
    /// The one that came back after a kill.
    again: Option<Again>,
}

/// A server on the socket of a killed one; ends as that would have.
struct Again(Child);

impl Single {
    pub(super) async fn start(arguments: &[&str]) -> Self {
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

    pub fn socket(&self) -> &str {
        self.url().trim_start_matches("unix://")
    }

    pub async fn try_run<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        command(words).query_async(&mut self.admin.clone()).await
    }

    pub async fn pid(&self) -> u32 {
        let info: String = self
            .try_run(&["INFO", "server"])
            .await
            .expect("the server answers");
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix("process_id:"));
        line.and_then(|pid| pid.trim().parse().ok())
            .expect("INFO names the process")
    }

    /// Kills the server, which loses all of its data; its socket refuses connections from then on.
    pub async fn kill(&self) -> Killed {
        signal(self.pid().await, "KILL");
        let socket = self.socket().to_owned();
        until("the socket refuses", async || {
            UnixStream::connect(&socket).await.is_err()
        })
        .await;
        Killed { socket }
    }

    /// Starts a new, empty one on the socket of a killed server.
    pub async fn start_again(&mut self, killed: Killed) {
        let child = Command::new("/bin/sh")
            .args(["-c", UNTIL_STDIN_CLOSES])
            .arg(binary())
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
}

/// What is known of a server that was killed.
pub struct Killed {
    socket: String,
}

impl Drop for Again {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Runs a command until the standard input closes, which it does when this process ends.
const UNTIL_STDIN_CLOSES: &str = r#""$0" "$@" </dev/null &
server=$!
trap 'kill -KILL $server; wait $server' EXIT
read -r _"#;
