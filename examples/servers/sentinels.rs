//! A private primary with replicas and sentinels on loopback, for examples. All of it ends with
//! this value, or with the process.

use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hedgerow::embedded::Server;
use redis::aio::MultiplexedConnection;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(crate) const SERVICE: &str = "mymaster";

pub(crate) struct Sentinels {
    data: Vec<(u16, Server)>,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    port: u16,
    /// Holds the pipe whose closing ends the process.
    supervisor: Child,
    _directory: tempfile::TempDir,
}

impl Sentinels {
    /// A primary, `replicas`, and three sentinels, ready for a failover.
    pub(crate) async fn start(replicas: usize) -> Result<Self> {
        let ports = free_ports(1 + replicas + 3)?;
        let (data, watch) = ports.split_at(1 + replicas);
        let primary = data[0].to_string();
        let mut servers = Vec::new();
        for (number, port) in data.iter().enumerate() {
            let port_text = port.to_string();
            let mut arguments = vec!["--port", &port_text, "--bind", "127.0.0.1"];
            arguments.extend(["--repl-diskless-sync-delay", "0"]);
            if number > 0 {
                arguments.extend(["--replicaof", "127.0.0.1", &primary]);
            }
            servers.push((*port, Server::start_with(&arguments).await?));
        }
        let sentinels = watch.iter().map(|port| Sentinel::start(*port, data[0]));
        let group = Self {
            data: servers,
            sentinels: sentinels.collect::<Result<_>>()?,
        };
        for sentinel in &group.sentinels {
            while !sentinel.is_ready(replicas).await.unwrap_or(false) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(group)
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        let url = |sentinel: &Sentinel| format!("redis://127.0.0.1:{}", sentinel.port);
        self.sentinels.iter().map(url).collect()
    }

    /// The port of the primary, as a sentinel sees it.
    pub(crate) async fn primary(&self) -> Result<u16> {
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
        let (_, port): (String, u16) = self.sentinels[0].ask(&words).await?;
        Ok(port)
    }

    /// The port of the primary that was promoted after the one at `old`. The sentinels learn of it
    /// one after the other, so the first may still name `old` when the client has moved on.
    pub(crate) async fn promoted_after(&self, old: u16) -> Result<u16> {
        loop {
            let port = self.primary().await?;
            if port != old {
                return Ok(port);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends a data node as a crash would.
    pub(crate) fn kill(&mut self, port: u16) {
        self.data.retain(|(other, _)| *other != port);
    }
}

impl Sentinel {
    fn start(port: u16, primary: u16) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\n\
             sentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {SERVICE} 1000\n\
             sentinel failover-timeout {SERVICE} 3000\n"
        );
        std::fs::write(&file, text)?;
        Ok(Self {
            port,
            supervisor: supervised(&file, directory.path())?,
            _directory: directory,
        })
    }

    /// Whether it knows the others, and replicas that could be promoted.
    async fn is_ready(&self, replicas: usize) -> Result<bool> {
        let quorum: String = self.ask(&["SENTINEL", "CKQUORUM", SERVICE]).await?;
        let known: Vec<Vec<String>> = self.ask(&["SENTINEL", "REPLICAS", SERVICE]).await?;
        let linked = known.iter().filter(|fields| {
            let link = ["master-link-status".to_owned(), "ok".to_owned()];
            fields.chunks(2).any(|field| field == link)
        });
        Ok(quorum.starts_with("OK 3") && linked.count() == replicas)
    }

    async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let mut connection: MultiplexedConnection =
            client.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        Ok(command.query_async(&mut connection).await?)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// A sentinel under a shell that outlives this process just long enough to end it.
fn supervised(file: &Path, directory: &Path) -> Result<Child> {
    let server = std::env::var("HEDGEROW_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    let supervisor = Command::new("/bin/sh")
        .args(["-c", SUPERVISOR, &server])
        .args([file, directory])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(supervisor)
}

const SUPERVISOR: &str = r#"
"$0" "$1" --sentinel --dir "$2" </dev/null &
server=$!
trap 'kill -KILL $server 2>/dev/null; wait $server; rm -rf "$2"' EXIT
trap '' INT TERM HUP
read -r _
"#;

/// Ports that nobody listens on now.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()?;
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    listeners.iter().map(port).collect()
}
