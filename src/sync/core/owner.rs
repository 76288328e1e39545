//! `Owner`: the identity to which the server makes a grant, or gives a position in its queue.
//!
//! Invariant: nothing that can be read in Redis forges a grant. The server holds the id of an
//! owner, which is the digest of a secret. The secret is told once, at a hand-over, to the next
//! holder. All of `core` names owners by this type.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use sha1::{Digest as _, Sha1};

/// An owner: the id that the server knows, and a secret that the server learns only at a hand-over.
/// Never shown.
///
/// The id of a fresh owner is its *seal*, the digest of its secret. Redis holds ids and seals, so
/// what can be read there forges no grant. A waiter believes a push that brings the secret to the
/// seal of the owner that was to hand over to it.
#[derive(Clone, Copy)]
pub(in crate::sync) struct Owner {
    id: u128,
    secret: u128,
}

/// 128 bits, as scripts and pushes spell them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) struct Hex([u8; 32]);

impl Owner {
    pub(in crate::sync) fn random() -> Self {
        let secret = rand::random();
        let Seal(id) = Seal::of(Hex::of(secret).as_bytes());
        Self { id, secret }
    }

    /// Returns an owner of the same process, to which the grant is passed. It has an id of its own,
    /// under the same seal. From the seal, the waiters of other processes know which push to
    /// believe.
    pub(in crate::sync) fn successor(self) -> Self {
        let (id, secret) = (rand::random(), self.secret);
        Self { id, secret }
    }

    /// Parses the id of an owner, as a message spells it. The owner that is returned has no secret.
    pub(in crate::sync) fn parse(hex: &str) -> Option<Self> {
        let id = Hex::parse(hex)?;
        // Enough to look it up: owners are compared by their ids.
        Some(Self { id, secret: 0 })
    }

    pub(in crate::sync) fn id(self) -> Hex {
        Hex::of(self.id)
    }

    pub(in crate::sync) fn secret(self) -> Hex {
        Hex::of(self.secret)
    }

    /// Returns what the value of a lock has behind the fence while no waiter is in the queue.
    pub(in crate::sync) fn unqueued(self) -> [u8; 35] {
        // 2 is the format. The last blank becomes a `+` once a waiter queues.
        let mut text = *b"2                                  ";
        text[2..34].copy_from_slice(self.id().as_bytes());
        text
    }
}

/// The digest of a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) struct Seal(u128);

impl Seal {
    /// Returns the seal of a secret, as it is spelt.
    pub(in crate::sync) fn of(secret: &[u8]) -> Self {
        let digest = Sha1::digest(secret);
        let head = digest.iter().take(16);
        Self(head.fold(0, |number, byte| number << 8 | u128::from(*byte)))
    }

    /// Parses a seal.
    pub(in crate::sync) fn parse(hex: &str) -> Option<Self> {
        Hex::parse(hex).map(Self)
    }
}

impl Hex {
    fn of(number: u128) -> Self {
        // Calculated, not looked up, so that a processor can make all digits at once.
        let digit = |nibble: u8| nibble + if nibble < 10 { b'0' } else { b'a' - 10 };
        let mut hex = [0; 32];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(number.to_be_bytes()) {
            pair[0] = digit(byte >> 4);
            pair[1] = digit(byte & 15);
        }
        Self(hex)
    }

    /// Parses the number.
    fn parse(hex: &str) -> Option<u128> {
        let digits = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        // Checked digit by digit, because `from_str_radix` also accepts a sign.
        u128::from_str_radix(hex, 16).ok().filter(|_| digits)
    }

    pub(in crate::sync) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// By the id: no two owners share one.
impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Owner {}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The id has random bits already: it is a digest, or was drawn at random.
        state.write_u64(self.id as u64);
    }
}

/// A map by owner. Only ids that this process has made are put in. So no other client chooses where
/// they go, and they need no hashing.
pub(in crate::sync) type ByOwner<T> = HashMap<Owner, T, BuildHasherDefault<AsItIs>>;

/// A hasher for random numbers: the hash is the number itself.
#[derive(Debug, Default)]
pub(in crate::sync) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Owner {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id.cmp(&other.id)
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(..)")
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner(..)")
    }
}

/// Whether a release tells the owner's secret, which proves a grant to the next in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sync) enum Secret {
    /// The owner knew of its grant, so it may hand over.
    Said,
    /// The owner did not know of a grant, and others may be queued behind it. The next one asks the
    /// server.
    Kept,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_spelt_in_hex_and_read_back() {
        for id in [0, u128::MAX, 0x0123_4567_89ab_cdef, rand::random()] {
            let owner = Owner { id, secret: 1 };
            let hex = String::from_utf8(owner.id().as_bytes().to_vec()).expect("ASCII");
            assert_eq!(hex, format!("{id:032x}"));
            assert_eq!(Owner::parse(&hex), Some(owner));
            assert_eq!(owner.unqueued(), *format!("2 {hex} ").as_bytes());
        }
        for other in [
            "",
            "0",
            "+123456789abcdef0123456789abcdef",
            &"g".repeat(32),
            &"0".repeat(33),
        ] {
            assert_eq!(Owner::parse(other), None, "{other:?}");
        }
    }

    /// The digest that scripts and other clients know: frozen.
    #[test]
    fn the_seal_is_half_of_sha_1() {
        // printf abc | sha1sum
        let abc = Seal::of(b"abc");
        assert_eq!(abc, Seal(0xa999_3e36_4706_816a_ba3e_2571_7850_c26c));
        let owner = Owner::random();
        assert_eq!(Seal(owner.id), Seal::of(owner.secret().as_bytes()));
        let next = owner.successor();
        assert_ne!(next, owner);
        assert!(next.secret() == owner.secret());
    }
}
