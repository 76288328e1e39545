//! How clients of each topology are made: the one place that knows.

use hedgerow::{Client, ClientBuilder};

use super::Place;

/// A builder for the servers of a test.
pub(super) fn builder(place: &Place) -> ClientBuilder {
    match place {
        Place::Single(single) => Client::builder().url(single.url()),
        Place::Cluster(cluster) => {
            Client::builder().cluster(cluster.primaries().iter().map(|node| node.url()))
        }
        Place::Shards(_) => panic!("no client for shards yet"),
        Place::Sentinel(_) => panic!("no client for sentinels yet"),
        Place::Tls(_) => panic!("no client for TLS yet"),
        Place::Acl(limited) => limited.builder(),
    }
}

/// Where a client of the two shards keeps a key that does not exist yet.
pub(super) fn shard_of(_key: &str) -> usize {
    0
}
