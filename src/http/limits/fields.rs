//! The header fields that tell a client of its limit: `RateLimit-Policy` and `RateLimit`, as the
//! IETF draft `draft-ietf-httpapi-ratelimit-headers-10` has them, and `Retry-After`.
//!
//! Invariant: seconds are rounded up, so a client that believes them does not come too early.
//! Without I/O. The service calls it.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::layer_limits::Policy;
use crate::limit::{DecidedBy, Decision};

/// Adds a policy and what is left of it.
pub(super) fn describe(fields: &mut HeaderMap, policy: &Policy) {
    let (quota, decision) = (policy.quota, &policy.decision);
    let name = structured(policy.group.as_deref(), &policy.name);
    let mut policy = format!("{name};q={}", quota.limit());
    let window = quota.window();
    // The draft has whole seconds. Another window is left out, rather than told wrongly.
    if window.subsec_nanos() == 0 {
        policy += &format!(";w={}", window.as_secs());
    }
    append(fields, POLICY, &policy);
    if is_known(decision) {
        let mut left = format!("{name};r={}", decision.remaining);
        // `t` is when more is available. While some is left, nobody need wait for that.
        if !decision.allowed {
            left += &format!(";t={}", wait_of(decision.retry_after));
        }
        append(fields, LIMIT, &left);
    }
}

/// Whether what is left is known: not in an outage, and not of a limit that was not asked, since
/// another of its group is known to refuse the request.
fn is_known(decision: &Decision) -> bool {
    match decision.decided_by {
        DecidedBy::Outage => false,
        DecidedBy::KnownRefusal => !decision.allowed,
        _ => true,
    }
}

/// Says when to come again.
pub(super) fn retry_after(fields: &mut HeaderMap, wait: Duration) {
    fields.insert(RETRY_AFTER, HeaderValue::from(wait_of(wait)));
}

/// How many seconds a client is to wait: at least one, since 0 would ask for the same answer
/// again.
pub(super) fn wait_of(wait: Duration) -> u64 {
    seconds(wait).max(1)
}

/// Appended, because other layers may have limits of their own.
fn append(fields: &mut HeaderMap, field: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        fields.append(HeaderName::from_static(field), value);
    }
}

fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// Returns the name of a limit, behind that of its group, as a string of structured fields (RFC
/// 9651), which has printable ASCII only. No two limits have the same.
fn structured(group: Option<&str>, name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push('"');
    if let Some(group) = group {
        escape_into(&mut text, group);
        text.push(':');
    }
    escape_into(&mut text, name);
    text.push('"');
    text
}

/// Appends one part of a name. A `:` stands only between parts, and a `%` only for other bytes.
fn escape_into(text: &mut String, part: &str) {
    for byte in part.bytes() {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' if !matches!(byte, b':' | b'%') => text.push(char::from(byte)),
            _ => *text += &format!("%{byte:02X}"),
        }
    }
}

const POLICY: &str = "ratelimit-policy";
const LIMIT: &str = "ratelimit";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_name_becomes_a_string_of_structured_fields() {
        assert_eq!(structured(None, r#"a "b" \"#), r#""a \"b\" \\""#);
        assert_eq!(structured(Some("site"), "hour"), r#""site:hour""#);
        assert_eq!(structured(None, "é\n"), r#""%C3%A9%0A""#);
    }

    #[test]
    fn no_two_limits_have_the_same_name_in_the_fields() {
        let names = [
            (None, "é"),
            (None, "è"),
            (None, "?"),
            (None, "%C3%A9"),
            (None, "a:b:c"),
            (Some("a"), "b:c"),
            (Some("a:b"), "c"),
            (Some("a%3Ab"), "c"),
        ];
        let told: HashSet<_> = names
            .iter()
            .map(|(group, name)| structured(*group, name))
            .collect();
        assert_eq!(told.len(), names.len(), "{told:?}");
    }

    #[test]
    fn parts_of_a_second_round_up_and_a_refusal_waits_at_least_one() {
        assert_eq!(seconds(Duration::from_millis(1001)), 2);
        assert_eq!(seconds(Duration::from_secs(2)), 2);
        let mut fields = HeaderMap::new();
        retry_after(&mut fields, Duration::ZERO);
        assert_eq!(fields[RETRY_AFTER], "1");
    }
}
