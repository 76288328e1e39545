//! [`Client::preflight`]: checks the servers before the first calls, and reports what makes calls
//! fail now or may do so later.
//!
//! Invariant: nothing is written, and everything that could not be asked is reported. The findings
//! are advice. No promise of the crate depends on them, and least of all on those about clocks.

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
    /// Checks every server that this client writes to, and reports what is wrong with it: missing
    /// rights of the ACL user, a version that is too old, a replica instead of a primary, settings
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
    /// Rights are checked by calls that change nothing. Calls that are refused appear in the
    /// server's `ACL LOG`. So does `CONFIG GET` if the user has no more rights than
    /// [`required_acl`](Self::required_acl). While it runs, it uses one more connection to each
    /// server.
    ///
    /// # Errors
    /// If no server answers at all: the reason.
    ///
    /// # Cancel safety
    /// Safe: nothing is written.
    pub async fn preflight(&self) -> Result<Preflight> {
        let deadline = self.deadline();
        let topology = self.topology();
        let nodes = match topology.nodes(deadline).await {
            Ok(nodes) => nodes,
            // The servers answered, but are no cluster. That is a finding, not an error.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Ok(Preflight(vec![judge::no_cluster(topology.address())]));
            }
            Err(error) => return Err(error),
        };
        // Unique to this client, so that no other caller uses the key.
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
        // With no server there is nothing to report on, so the caller gets the reason.
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
        // A stable sort: findings of one severity stay in the order of the servers.
        findings.sort_by_key(|finding| finding.severity);
        Ok(Preflight(findings))
    }
}
