//! Clocks: how far the clock of a server is from that of this machine, as far as that is certain.
//!
//! Invariant: only what a query and its answer prove is reported. No promise of the crate depends
//! on it. `preflight` calls this.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::finding::{Finding, FindingCode, Severity};
use crate::error::Result;
use crate::net::connection::Connection;
use crate::wire::value::parsed;

/// How far the server's clock is ahead of this machine's, in seconds. Two bounds, since it is not
/// known when exactly between query and answer the server read its clock.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Offset {
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// Asks the server behind `link` for its time. `None` if it does not report it.
pub(crate) async fn ask(link: &Arc<Connection>, deadline: Instant) -> Result<Option<Offset>> {
    let before = seconds();
    let reply = link.send(&redis::cmd("TIME"), deadline).await?.value;
    let after = seconds();
    let Ok((whole, micros)) = parsed::<(u64, u64)>(reply) else {
        return Ok(None);
    };
    let server = Duration::new(whole, 0).as_secs_f64() + micros as f64 / 1e6;
    Ok(Some(Offset {
        least: server - after,
        most: server - before,
    }))
}

/// Returns the wall clock of this machine.
fn seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// Returns findings for clocks that differ from this machine's, and from each other.
pub(crate) fn judged(servers: &[(&str, Offset)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (address, offset) in servers {
        // The bound that is nearer to zero: the difference is at least that.
        let (ahead, word) = if offset.least > 0.0 {
            (offset.least, "ahead of")
        } else {
            (-offset.most, "behind")
        };
        if ahead > SKEW {
            findings.push(skewed(
                (*address).to_owned(),
                format!(
                    "its clock is at least {ahead:.1} s {word} this machine's; see to NTP on both: \
                     leases do not depend on it, but times in logs do not compare"
                ),
            ));
        }
    }
    let first = servers
        .iter()
        .max_by(|one, two| one.1.least.total_cmp(&two.1.least));
    let last = servers
        .iter()
        .min_by(|one, two| one.1.most.total_cmp(&two.1.most));
    if let (Some((first, ahead)), Some((last, behind))) = (first, last) {
        // The least difference that the bounds allow.
        let apart = ahead.least - behind.most;
        if apart > SKEW {
            findings.push(skewed(
                format!("{first}, {last}"),
                format!(
                    "the clock of the first is at least {apart:.1} s ahead of that of the second; see \
                     to NTP: fences that start anew on the second after data loss may be below those of the first"
                ),
            ));
        }
    }
    findings
}

fn skewed(server: String, message: String) -> Finding {
    Finding {
        severity: Severity::Warning,
        code: FindingCode::ClockSkew,
        server,
        message,
    }
}

/// How far two clocks may differ, in seconds.
const SKEW: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;

    /// An offset as measured by a query that took 20 ms.
    fn offset(ahead: f64) -> Offset {
        Offset {
            least: ahead - 0.01,
            most: ahead + 0.01,
        }
    }

    #[test]
    fn a_clock_is_judged_by_what_is_sure_of_it() {
        for (ahead, skewed) in [
            (0.0, 0),
            (0.5, 0),
            (0.52, 1),
            (-0.5, 0),
            (-0.52, 1),
            (3600.0, 1),
        ] {
            let found = judged(&[("a", offset(ahead))]);
            assert_eq!(found.len(), skewed, "{ahead}");
        }
        // A slow answer proves little.
        let slow = Offset {
            least: 0.4,
            most: 9.0,
        };
        assert_eq!(judged(&[("a", slow)]).len(), 0);
    }

    #[test]
    fn clocks_of_servers_are_compared_with_each_other() {
        let findings = judged(&[("a", offset(0.1)), ("b", offset(0.4)), ("c", offset(-0.3))]);
        assert_eq!(findings.len(), 1, "none is far from ours");
        assert_eq!(findings[0].server, "b, c");
        assert!(findings[0].message.contains("0.7 s"), "{}", findings[0]);
        assert_eq!(judged(&[("a", offset(0.2)), ("b", offset(-0.2))]).len(), 0);
    }
}
