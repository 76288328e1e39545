//! A primary with two replicas, watched by three sentinels.

use futures::future::join_all;

use super::{Node, Port, Recipe, Replicated};
use crate::support::wait::until;

/// Data nodes and those who watch them.
#[derive(Debug)]
pub struct Sentinels {
    data: Replicated,
    sentinels: Vec<Node>,
}

impl Sentinels {
    /// The name under which the sentinels know the data.
    pub const NAME: &str = "mymaster";

    /// Starts them and waits until a failover could be made.
    pub async fn start() -> Self {
        Self::start_with(None, None).await
    }

    /// As [`start`](Self::start), with a password of the data nodes and one of the sentinels.
    pub async fn start_with(data: Option<&str>, watch: Option<&str>) -> Self {
        let nodes = Replicated::start_with(2, data).await;
        let port = nodes.primary().port();
        let sentinels = (0..3).map(|_| {
            let recipe = Recipe::new().on(Port::free());
            let recipe = match watch {
                Some(password) => recipe.password(password),
                None => recipe,
            };
            recipe.sentinel(configuration(port, data, watch)).start()
        });
        let sentinels = Self {
            sentinels: join_all(sentinels).await,
            data: nodes,
        };
        sentinels.ready().await;
        sentinels
    }

    pub fn sentinels(&self) -> &[Node] {
        &self.sentinels
    }

    pub fn data(&self) -> &Replicated {
        &self.data
    }

    /// Where the first sentinel that answers sees the primary: host and port.
    pub async fn master_addr(&self) -> (String, u16) {
        for sentinel in &self.sentinels {
            let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::NAME];
            if let Ok(address) = sentinel.try_run(&words).await {
                return address;
            }
        }
        panic!("no sentinel answers");
    }

    /// The primary, as the sentinels see it.
    pub async fn primary(&self) -> &Node {
        let (_, port) = self.master_addr().await;
        let node = self.data.nodes().iter().find(|node| node.port() == port);
        node.expect("one of ours")
    }

    /// Asks for a failover without cause and waits until it is made.
    pub async fn failover(&self) {
        let old = self.master_addr().await;
        let _: String = self.sentinels[0]
            .run(&["SENTINEL", "FAILOVER", Self::NAME])
            .await;
        self.moved_from(&old).await;
    }

    /// Waits until all sentinels see the primary elsewhere, and it knows that it is one.
    pub async fn moved_from(&self, old: &(String, u16)) {
        until("the sentinels have a new primary", async || {
            for sentinel in &self.sentinels {
                let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::NAME];
                let seen: (String, u16) = sentinel.run(&words).await;
                if seen == *old {
                    return false;
                }
            }
            self.primary().await.info("replication", "role").await == "master"
        })
        .await;
    }

    /// Whether any of them has noticed that time has jumped, and does nothing about it for a while.
    pub async fn are_in_tilt(&self) -> bool {
        let told = self.sentinels.iter();
        let told = join_all(told.map(|sentinel| sentinel.info("sentinel", "sentinel_tilt"))).await;
        told.iter().any(|tilt| tilt != "0")
    }

    /// Waits until a failover could be made.
    pub async fn ready(&self) {
        until("the sentinels know each other", async || {
            self.are_ready().await
        })
        .await;
    }

    /// Whether every sentinel knows the others and both replicas.
    pub async fn are_ready(&self) -> bool {
        for sentinel in &self.sentinels {
            let quorum: Result<String, _> = sentinel
                .try_run(&["SENTINEL", "CKQUORUM", Self::NAME])
                .await;
            let replicas: Vec<Vec<String>> =
                sentinel.run(&["SENTINEL", "REPLICAS", Self::NAME]).await;
            let known = replicas.iter().filter(|replica| is_usable(replica));
            if !quorum.is_ok_and(|quorum| quorum.starts_with("OK 3")) || known.count() != 2 {
                return false;
            }
        }
        true
    }
}

/// Whether a sentinel would promote this replica: it is up, and has told of itself.
fn is_usable(replica: &[String]) -> bool {
    let field = |name: &str| {
        let mut pairs = replica.chunks(2);
        let pair = pairs.find(|pair| pair[0] == name);
        pair.map(|pair| pair[1].as_str()).unwrap_or_default()
    };
    field("flags") == "slave" && field("master-link-status") == "ok"
}

fn configuration(port: u16, data: Option<&str>, watch: Option<&str>) -> String {
    let name = Sentinels::NAME;
    let mut text = format!(
        "sentinel monitor {name} 127.0.0.1 {port} 2\n\
         sentinel down-after-milliseconds {name} 500\n\
         sentinel failover-timeout {name} 3000\n\
         sentinel parallel-syncs {name} 1\n"
    );
    if let Some(password) = data {
        text += &format!("sentinel auth-pass {name} {password}\n");
    }
    if let Some(password) = watch {
        text += &format!("sentinel sentinel-pass {password}\n");
    }
    text
}
