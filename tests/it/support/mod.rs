//! Helpers: servers, topologies, proxies, waits. What they do is tested beside them.

pub mod aging;
pub mod gate;
pub mod halted;
pub mod listener;
pub mod lua;
pub mod monitor;
pub mod patience;
pub mod permits;
pub mod process;
pub mod proxy;
pub mod server;
pub mod topology;
pub mod wait;
