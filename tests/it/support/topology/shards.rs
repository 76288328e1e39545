//! Servers that do not know each other; who has which key is the client's affair.

use redis::{FromRedisValue, RedisResult};

use super::{Node, Port, Recipe};

#[derive(Debug)]
pub struct Shards {
    nodes: Vec<Node>,
}

impl Shards {
    pub async fn start(count: usize) -> Self {
        let nodes = (0..count).map(|_| Recipe::new().on(Port::free()).start());
        Self {
            nodes: futures::future::join_all(nodes).await,
        }
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node that has a key, or none if it does not exist.
    pub async fn node_of(&self, key: &str) -> RedisResult<Option<&Node>> {
        for node in &self.nodes {
            if node.try_run(&["EXISTS", key]).await? {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    /// Runs a command where its first key is. One whose key is nowhere, or that has none, runs on
    /// the node to which `route` sends the key, or on the first.
    pub async fn try_run<T: FromRedisValue>(
        &self,
        words: &[&str],
        route: impl Fn(&str) -> usize,
    ) -> RedisResult<T> {
        let question = [&["COMMAND", "GETKEYS"], words].concat();
        let keys: RedisResult<Vec<String>> = self.nodes[0].try_run(&question).await;
        let Some(key) = keys.ok().and_then(|keys| keys.into_iter().next()) else {
            return self.nodes[0].try_run(words).await;
        };
        let node = match self.node_of(&key).await? {
            Some(node) => node,
            None => &self.nodes[route(&key)],
        };
        node.try_run(words).await
    }
}
