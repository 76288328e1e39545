//! One server: connections, pipelines, pushes, large values.

mod breaker;
mod connect;
mod credentials;
mod large_trials;
mod large_values;
mod overload;
mod pipelines;
mod push_runtimes;
mod reauth;
mod reconnect;
mod slow_replies;
mod sockets;
mod storms;
#[cfg(feature = "tls")]
mod tls;
mod transfer;
