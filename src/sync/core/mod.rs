//! TODO: what it is, its invariant, who calls it.

pub(crate) mod agenda;
pub(crate) mod answer;
pub(crate) mod first_try;
pub(crate) mod held;
pub(crate) mod hold;
pub(crate) mod inbox;
pub(crate) mod jobs;
pub(crate) mod keeper;
pub(crate) mod keeper_state;
pub(crate) mod keeper_task;
pub(crate) mod keys;
pub(crate) mod owner;
pub(crate) mod question;
pub(crate) mod queue_task;
pub(crate) mod registry;
pub(crate) mod release;
pub(crate) mod request;
pub(crate) mod ticket;
pub(crate) mod watch;
