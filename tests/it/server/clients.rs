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
        #[cfg(feature = "tls")]
        Place::Tls(server) => {
            let (authority, known) = (&server.certificates.authority, &server.certificates.client);
            let tls = hedgerow::Tls::new()
                .roots_pem(authority.certificate.clone())
                .client_pem(known.certificate.clone(), known.key.clone());
            Client::builder().url(&server.node.url()).tls(tls)
        }
        #[cfg(not(feature = "tls"))]
        Place::Tls(_) => panic!("built without the feature tls"),
        Place::Acl(_) => panic!("no user with few rights yet"),
    }
}

/// Where a client of the two shards keeps a key that does not exist yet.
pub(super) fn shard_of(_key: &str) -> usize {
    0
}
