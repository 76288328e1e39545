//! `returned`: gives back what was taken, and forgets that the key was refused.
//!
//! Invariant: the process forgets a refusal also if the call is dropped or not answered, since it
//! may have been executed. Refunds and waits that were dropped call this.

use super::refusals::Refusals;
use super::scripts::{Asked, Mark, give_back};
use crate::client::Client;
use crate::error::Result;
use crate::key::Key;
use crate::time::Deadline;

/// Gives back what was taken at `mark`, or whatever is there if that is not known.
pub(super) async fn returned(
    client: &Client,
    refusals: &Refusals,
    asked: &Asked,
    mark: Option<Mark>,
    deadline: Deadline,
) -> Result<()> {
    refusals.forget(&asked.key);
    // What was refused meanwhile is forgotten, too.
    let _forgets = Forgets(refusals, &asked.key);
    give_back(client, asked, mark, deadline).await
}

struct Forgets<'r>(&'r Refusals, &'r Key);

impl Drop for Forgets<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}
