//! A private cluster on loopback, for examples and benchmarks. Its servers end with this value.

use std::error::Error;
use std::net::TcpListener;
use std::time::Duration;

use hedgerow::embedded::Server;
use redis::aio::MultiplexedConnection;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The first servers are primaries; each may have one replica, in the same order behind them.
pub(crate) struct Cluster {
    servers: Vec<Server>,
    admins: Vec<MultiplexedConnection>,
    ports: Vec<u16>,
}

impl Cluster {
    pub(crate) async fn start(primaries: usize, replicas: bool) -> Result<Self> {
        let count = primaries * (1 + usize::from(replicas));
        let ports = free_ports(2 * count)?;
        let (ports, buses) = ports.split_at(count);
        let mut cluster = Self {
            servers: Vec::new(),
            admins: Vec::new(),
            ports: ports.to_vec(),
        };
        for (port, bus) in ports.iter().zip(buses) {
            let (port, bus) = (port.to_string(), bus.to_string());
            let arguments = [
                ["--port", &port],
                ["--cluster-enabled", "yes"],
                ["--cluster-port", &bus],
                ["--cluster-node-timeout", "1000"],
                ["--cluster-replica-validity-factor", "0"],
                ["--repl-diskless-sync-delay", "0"],
            ];
            let server = Server::start_with(arguments.as_flattened()).await?;
            let client = redis::Client::open(server.url())?;
            cluster
                .admins
                .push(client.get_multiplexed_async_connection().await?);
            cluster.servers.push(server);
        }
        for number in 0..count {
            let (epoch, bus) = ((number + 1).to_string(), buses[number].to_string());
            cluster
                .run(number, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch])
                .await?;
            let port = ports[number].to_string();
            cluster
                .run(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus])
                .await?;
        }
        for number in 0..primaries {
            let first = (number * 16_384 / primaries).to_string();
            let last = ((number + 1) * 16_384 / primaries - 1).to_string();
            cluster
                .run(number, &["CLUSTER", "ADDSLOTSRANGE", &first, &last])
                .await?;
        }
        for number in primaries..count {
            let id: String = cluster
                .ask(number - primaries, &["CLUSTER", "MYID"])
                .await?;
            while cluster
                .run(number, &["CLUSTER", "REPLICATE", &id])
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        for number in 0..count {
            while !cluster.is_well(number).await? {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(cluster)
    }

    /// Where a client may begin.
    pub(crate) fn seeds(&self) -> Vec<String> {
        let url = |port| format!("redis://127.0.0.1:{port}");
        self.ports.iter().map(url).collect()
    }

    /// Ends a server as a crash would.
    pub(crate) fn kill(&mut self, number: usize) {
        self.admins.remove(number);
        self.ports.remove(number);
        drop(self.servers.remove(number));
    }

    async fn is_well(&self, number: usize) -> Result<bool> {
        let info: String = self.ask(number, &["CLUSTER", "INFO"]).await?;
        let link: String = self.ask(number, &["INFO", "replication"]).await?;
        let slots: redis::Value = self.ask(number, &["CLUSTER", "SLOTS"]).await?;
        let known = matches!(slots, redis::Value::Array(rows) if rows.iter().all(|row| {
            // First slot, last slot, the primary, and its replica where there are any.
            let wanted = 3 + usize::from(self.ports.len() > rows.len());
            matches!(row, redis::Value::Array(parts) if parts.len() >= wanted)
        }));
        Ok(known && info.contains("cluster_state:ok") && !link.contains("master_link_status:down"))
    }

    async fn run(&self, number: usize, words: &[&str]) -> Result<()> {
        let _: redis::Value = self.ask(number, words).await?;
        Ok(())
    }

    async fn ask<T: redis::FromRedisValue>(&self, number: usize, words: &[&str]) -> Result<T> {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        let mut admin = self.admins[number].clone();
        Ok(command.query_async(&mut admin).await?)
    }
}

/// Ports that nobody listens on now.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()?;
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    listeners.iter().map(port).collect()
}
