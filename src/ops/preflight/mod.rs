//! What [`Client::preflight`] finds: what stands in the way of a client's calls, or will one day,
//! asked before they are made.
//!
//! Invariant: nothing is written, and nothing that could not be asked is passed over in silence.
//! What is found here is advice: no promise of the crate rests on it, least of all on what is found
//! of clocks.

mod clocks;
mod facts;
mod finding;
mod judge;

use futures::future::join_all;

pub use finding::{Finding, FindingCode, Preflight, Severity};

use judge::Named;

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};

impl Client {
    /// Looks at every server that this client writes to, and tells what is wrong with it: missing
    /// rights of the ACL user, a version that is too old, a replica in a primary's place, settings
    /// that lose or evict data, clocks that differ, another version of hedgerow that writes the
    /// namespace in another format.
    ///
    /// Meant for the start of a service, or for its deployment:
    ///
    /// ```no_run
    /// # async fn example(client: hedgerow::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let preflight = client.preflight().await?;
    /// print!("{preflight}");
    /// if !preflight.is_ok() {
    ///     return Err("the server is not fit for this service".into());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Rights are found out by calls that change nothing; those refused show in the server's `ACL
    /// LOG`, as its `CONFIG GET` does for a user with no more than
    /// [`required_acl`](Self::required_acl). It takes one more connection to each server while it
    /// runs.
    ///
    /// # Errors
    /// When no server answers at all: says why.
    ///
    /// # Cancel safety
    /// Safe: nothing is written.
    pub async fn preflight(&self) -> Result<Preflight> {
        let deadline = self.deadline();
        let topology = self.topology();
        let nodes = match topology.nodes(deadline).await {
            Ok(nodes) => nodes,
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Ok(Preflight(vec![judge::no_cluster(topology.address())]));
            }
            Err(error) => return Err(error),
        };
        let key = self.namespace().trial(self.process());
        let asked = nodes.iter().map(|(address, link)| async {
            let formats = self.formats();
            let facts = facts::gather(address.clone(), link, &key, formats, deadline.at).await;
            facts.map_err(|error| (address.clone(), error))
        });
        let mut known = Vec::with_capacity(nodes.len());
        let mut findings = Vec::new();
        let mut silent: Option<Error> = None;
        for facts in join_all(asked).await {
            match facts {
                Ok(facts) => known.push(facts),
                Err((address, error)) => {
                    findings.push(judge::unreachable(address, &error));
                    silent = Some(error);
                }
            }
        }
        if let (Some(error), true) = (silent, known.is_empty()) {
            return Err(error);
        }
        for facts in &known {
            findings.extend(judge::server(
                facts,
                match topology.is_cluster() {
                    true => Named::Cluster,
                    false => Named::Server,
                },
                self.namespace(),
            ));
        }
        let clocks = known.iter();
        let clocks = clocks.filter_map(|facts| Some((facts.address.as_str(), facts.clock?)));
        findings.extend(clocks::judged(&clocks.collect::<Vec<_>>()));
        findings.sort_by_key(|finding| finding.severity);
        Ok(Preflight(findings))
    }
}
