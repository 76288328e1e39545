//! Sessions of tower-sessions: [`SessionStore`] keeps them in a [`Cache`](crate::Cache).
//!
//! Invariant: an id that was deleted never has a session again, and no id is written to Redis, to
//! an error or to an event. Only public items of the crate are used here, and `meters`. Users give
//! a `SessionStore` to the `SessionManagerLayer` of tower-sessions.
//!
//! A session is an entry of the cache. Its key is a digest of the session id, and it carries a tag
//! of its user. The data that a request loads has one more key, [`RESERVED_KEY`], by which a save
//! knows what the request had read.

mod base;
mod departures;
mod digest;
mod info;
mod judge;
mod last_saves;
mod of_user;
mod saving;
mod stats;
mod store;
mod stored;
mod trouble;
mod user;

pub use base::RESERVED_KEY;
pub use info::SessionInfo;
pub use judge::Conflict;
pub use stats::SessionStats;
pub use store::SessionStore;
pub use trouble::Trouble;
