//! How clients of each topology are made: the one place that knows.

use hedgerow::{Client, ClientBuilder};
use xxhash_rust::xxh3::xxh3_64;

use super::Place;

/// A builder for the servers of a test.
pub(super) fn builder(place: &Place) -> ClientBuilder {
    match place {
        Place::Single(single) => Client::builder().url(single.url()),
        Place::Cluster(cluster) => {
            Client::builder().cluster(cluster.primaries().iter().map(|node| node.url()))
        }
        Place::Shards(shards) => {
            let urls = shards.nodes().iter().map(|node| node.url());
            let shards = NAMES.into_iter().zip(urls);
            Client::builder().shards(shards.map(|(name, url)| (name, url, 1)))
        }
        Place::Sentinel(sentinels) => {
            let urls = sentinels.sentinels().iter().map(|node| node.url());
            Client::builder().sentinels(urls, "mymaster")
        }
        #[cfg(feature = "tls")]
        Place::Tls(server) => {
            let (authority, known) = (&server.certificates.authority, &server.certificates.client);
            let tls = hedgerow::client::Tls::new()
                .roots_pem(authority.certificate.clone())
                .client_pem(known.certificate.clone(), known.key.clone());
            Client::builder().url(&server.node.url()).tls(tls)
        }
        #[cfg(not(feature = "tls"))]
        Place::Tls(_) => panic!("built without the feature tls"),
        Place::Acl(limited) => limited.builder(),
    }
}

/// Where a client of the two shards keeps a key that does not exist yet: told again from the
/// documentation, not from the crate.
pub(super) fn shard_of(key: &str) -> usize {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    let tag = xxh3_64(tag.map_or(key, |(tag, _)| tag).as_bytes());
    let draw = |name: &str| {
        let seed = xxh3_64(name.as_bytes());
        xxh3_64([seed.to_le_bytes(), tag.to_le_bytes()].as_flattened())
    };
    usize::from(draw(NAMES[1]) > draw(NAMES[0]))
}

/// What the two shards are called.
const NAMES: [&str; 2] = ["a", "b"];
