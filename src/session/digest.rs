//! The digests that stand for session ids and users.
//!
//! Invariant: a session id cannot be found from its digest, since it has 128 random bits. A user
//! can be found by trying all users. Everything that is written or shown is made from a digest.

use sha2::{Digest as _, Sha256};
use tower_sessions_core::session::Id;

/// The digest of a session id: its key in the cache.
pub(super) fn of_session(id: &Id) -> String {
    hex(&of(b"hedgerow session\0", &id.0.to_le_bytes()))
}

/// The digest of a user.
pub(super) fn of_user(user: &str) -> String {
    hex(&of(b"hedgerow session user\0", user.as_bytes()))
}

/// A number that tells data from other data.
pub(super) fn of_data(text: &str) -> u64 {
    u128::from_be_bytes(of(b"hedgerow session data\0", text.as_bytes())) as u64
}

/// Whether `text` is spelt as [`of_session`] spells digests.
pub(super) fn is_spelt(text: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 2 * BYTES && text.bytes().all(is_digit)
}

fn of(domain: &[u8], bytes: &[u8]) -> [u8; BYTES] {
    let whole = Sha256::new().chain_update(domain).chain_update(bytes);
    let mut digest = [0; BYTES];
    digest.copy_from_slice(&whole.finalize()[..BYTES]);
    digest
}

fn hex(digest: &[u8; BYTES]) -> String {
    format!("{:032x}", u128::from_be_bytes(*digest))
}

/// 128 bits: as many as an id has.
const BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// They are keys in Redis: a change would end all sessions.
    #[test]
    fn digests_never_change() {
        for (id, digest) in [
            (0, "a7f7d1b9147ef5801ffaadc983315dfa"),
            (1, "8551fb495164da34ef052e73376371eb"),
            (-1, "1ec14371f347a1f6863f2a06edc9a3de"),
        ] {
            assert_eq!(of_session(&Id(id)), digest);
        }
        assert_eq!(of_user("7"), "7ee97b14e669b7e67c1801ee3e3629bd");
        assert!(is_spelt(&of_session(&Id(-1))));
        assert!(!is_spelt("*") && !is_spelt(&"A".repeat(32)) && !is_spelt(&"a".repeat(33)));
    }
}
