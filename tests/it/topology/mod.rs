//! Several servers: clusters, sentinels, replicas, shards.

mod cluster;
mod cluster_runtimes;
mod keyslot;
mod large_topologies;
mod reauth_topologies;
mod replicas;
mod resharding;
mod sentinel;
mod sentinel_runtimes;
pub mod shards;
mod slot_map;
