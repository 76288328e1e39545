//! Integration tests: the public API against real servers, a topic a file.
#![expect(
    unreachable_pub,
    reason = "a test binary exports nothing; `pub` says what a file offers"
)]

mod acl;
mod breaker;
mod bulkhead;
mod cache;
mod cache_model;
mod canary;
mod client;
mod cluster;
mod conditions;
mod counter;
mod counter_loss;
mod counter_model;
mod credentials;
mod faults;
mod foreign;
mod freshness;
mod fuzz_corpora;
mod gate;
mod growth;
mod house;
mod keyslot;
mod lane;
mod lease;
mod listener;
mod load_errors;
mod lock;
mod lock_cancel;
mod lock_faults;
mod lock_hold;
mod lock_model;
mod lock_process;
mod lock_push;
mod lock_queue;
mod lock_renewals;
mod lock_runtimes;
mod lock_storm;
mod lock_terms;
mod lock_truth;
mod lock_turns;
mod lock_unpolled;
mod lua;
mod memoize;
mod memoize_bounds;
mod memoize_fleet;
mod memoize_process;
mod memoize_runtimes;
mod monitor;
mod observability;
mod outage;
mod overload;
mod passing;
mod per_call;
mod preflight;
mod process;
mod proxy;
mod reauth;
mod reconnect;
mod replicas;
mod runtime;
mod runtimes;
mod scripts;
mod secrets;
mod sentinel;
mod server;
mod shards;
mod sockets;
mod tag_ids;
mod tags;
#[cfg(feature = "tls")]
mod tls;
mod topology;
mod wait;
