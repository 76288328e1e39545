//! The example `shop`: the real binary, two instances on one Redis, driven by real HTTP.

mod browser;
mod ends;
mod limits;
mod load;
mod orders;
mod outage;
mod service;
mod sessions;
mod unfinished;
mod visitor;
