//! `Keyring`: payloads are encrypted and authenticated (XChaCha20-Poly1305).
//!
//! Invariant: a payload is opened only at the key and with the header and the stamps that it was
//! sealed with. So nobody without a key can read a payload, change it, or move it to another Redis
//! key or under other tags. Both deadlines are left out, since the script that stores the entry
//! writes them. The [`Stack`](super::Stack) calls this module.
//!
//! The payload is the nonce (24 random bytes), the ciphertext, and the tag (16 bytes).

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use chacha20poly1305::{AeadInOut, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::envelope::{self, Envelope};
use crate::error::{Error, ErrorKind, Result};

/// The keys that a cache encrypts its values with, for [`Cache::encrypt`](crate::Cache::encrypt).
///
/// Entries name their key by its id. To change the key of a running fleet, first give all processes
/// the new key with [`reading`](Self::reading), then make it the one that they write with, and
/// leave the old one out once its entries have expired.
///
/// ```no_run
/// # fn example(client: hedgerow::Client, old: [u8; 32], new: [u8; 32]) -> hedgerow::Result<()> {
/// use hedgerow::Keyring;
///
/// let keyring = Keyring::new(2, &new)?.reading(1, &old)?;
/// let cache = client.cache("patients").encrypt(keyring);
/// # Ok(())
/// # }
/// ```
///
/// # What is protected
///
/// A reader or writer of Redis without a key can neither read a value nor make one up. A value
/// cannot be changed, moved to another key, cache or namespace, or put under other tags. The
/// same holds for the records of failed loads.
///
/// The header of an entry is not hidden: its codec and compressor, how long the load took, its tags
/// by their ids, and whether there is a value. Calls that need no value look at the header only:
/// `contains`, `ttl`, `touch`, `expire` and `explain` may believe a header that was made up.
///
/// The names of keys, the first bytes of tags and the size of a value are not hidden. With
/// [compression](crate::Compression), the size says something of the value: turn it off where an
/// attacker chooses parts of a secret value. A writer of Redis can remove entries, keep
/// them beyond their TTL, and bring an earlier entry of the same key back, also after an
/// invalidation: TTLs and the generations of tags are not sealed.
///
/// The secrets are erased from memory when the last clone is dropped, and `Debug` does not show
/// them.
#[derive(Clone)]
pub struct Keyring(Arc<Keys>);

#[derive(Clone)]
struct Keys {
    writing: Secret,
    reading: Vec<Secret>,
}

#[derive(Clone)]
struct Secret {
    id: NonZeroU32,
    // Boxed: where a value is moved from, its bytes stay.
    key: Box<Zeroizing<[u8; 32]>>,
}

impl Keyring {
    /// A keyring that writes with this key, and reads with it. Take 32 bytes from a source of
    /// secret keys, such as a key management service, not a password. An id is any number but 0.
    /// It belongs to one key for ever.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the id is 0.
    pub fn new(id: u32, key: &[u8; 32]) -> Result<Self> {
        Ok(Self(Arc::new(Keys {
            writing: Secret::new(id, key)?,
            reading: Vec::new(),
        })))
    }

    /// Adds a key that is read with, but not written with.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the id is 0, or is on the keyring already.
    pub fn reading(mut self, id: u32, key: &[u8; 32]) -> Result<Self> {
        let secret = Secret::new(id, key)?;
        if self.of(id).is_some() {
            return Err(Error::invalid(format!(
                "the keyring has two keys with the id {id}; give each key an id of its own"
            )));
        }
        Arc::make_mut(&mut self.0).reading.push(secret);
        Ok(self)
    }

    /// The id of the key that is written with.
    pub(super) fn id(&self) -> u32 {
        self.0.writing.id.get()
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.of(id).is_some()
    }

    /// Encrypts everything of `entry` from `start` on, for the Redis key `at`. The header is
    /// complete but for its checksum.
    pub(super) fn seal(&self, entry: &mut Vec<u8>, start: usize, at: &str) -> Result<()> {
        let nonce: [u8; NONCE] = rand::random();
        let bound = envelope::bound(&entry[..start], at);
        let cipher = self.0.writing.cipher();
        let plain = &mut entry[start..];
        let tag = cipher.encrypt_inout_detached(&XNonce::from(nonce), &bound, plain.into());
        let tag = tag.map_err(|_| Error::new(ErrorKind::TooLarge, TOO_LONG))?;
        entry.splice(start..start, nonce);
        entry.extend_from_slice(&tag);
        Ok(())
    }

    /// Decrypts the payload of an entry at the Redis key `at`.
    pub(super) fn open(&self, envelope: &Envelope<'_>, at: &str) -> Result<Vec<u8>> {
        let secret = self.of(envelope.key_id).ok_or_else(|| forged("no key"))?;
        let short = || forged("it is too short");
        let (nonce, rest) = envelope.payload().split_first_chunk().ok_or_else(short)?;
        let (sealed, tag) = rest.split_last_chunk().ok_or_else(short)?;
        let (nonce, tag): (&[u8; NONCE], &[u8; TAG]) = (nonce, tag);
        let bound = envelope::bound(envelope.head(), at);
        let mut plain = sealed.to_vec();
        let cipher = secret.cipher();
        let (nonce, tag) = (XNonce::from(*nonce), Tag::from(*tag));
        let opened = cipher.decrypt_inout_detached(&nonce, &bound, (&mut plain[..]).into(), &tag);
        match opened {
            Ok(()) => Ok(plain),
            Err(_) => Err(forged("its seal does not fit")),
        }
    }

    /// Tells this keyring apart from all others that exist at the same time.
    pub(super) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    fn of(&self, id: u32) -> Option<&Secret> {
        let Keys { writing, reading } = &*self.0;
        let mut all = std::iter::once(writing).chain(reading);
        all.find(|secret| secret.id.get() == id)
    }
}

/// Shows the ids only.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reading: Vec<_> = self.0.reading.iter().map(|secret| secret.id).collect();
        f.debug_struct("Keyring")
            .field("writing", &self.0.writing.id)
            .field("reading", &reading)
            .finish_non_exhaustive()
    }
}

impl Secret {
    fn new(id: u32, key: &[u8; 32]) -> Result<Self> {
        let Some(id) = NonZeroU32::new(id) else {
            return Err(Error::invalid(
                "the id of a key is 0, which means not encrypted; give another",
            ));
        };
        let key = Zeroizing::new(*key);
        let key = Box::new(key);
        Ok(Self { id, key })
    }

    /// It erases its own copy of the key when it is dropped.
    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&**self.key).into())
    }
}

fn forged(how: &str) -> Error {
    Error::new(
        ErrorKind::Decode,
        format!(
            "cannot decrypt the entry: {how}; it was sealed with another key of the same id, at \
             another key of Redis, or was tampered with"
        ),
    )
}

const NONCE: usize = 24;
const TAG: usize = 16;
const TOO_LONG: &str = "the value is too long to be encrypted (256 GiB)";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::codec::{Compression, DecodesLike, HEADER, Outcome, Stack, Stamp, Unreadable};

    const AT: &str = "hr:v:{c:k}";

    fn stack(keyring: Keyring) -> Stack {
        Stack {
            keyring: Some(keyring),
            ..Stack::default()
        }
    }

    fn keyring(id: u32, byte: u8) -> Keyring {
        Keyring::new(id, &[byte; 32]).expect("an id")
    }

    fn written<V: Serialize>(stack: &Stack, value: &V) -> Vec<u8> {
        let stamp = Stamp {
            tag: 1,
            generation: 2,
        };
        let entry = stack.entry(AT, value, &[stamp], Duration::ZERO);
        entry.expect("it can be written").0
    }

    fn read<V: DeserializeOwned>(stack: &Stack, at: &str, entry: &[u8]) -> Result<V, Unreadable> {
        stack.decoder(at).decode(&Envelope::parse(entry)?)
    }

    fn is_foreign<V: DeserializeOwned + fmt::Debug>(stack: &Stack, at: &str, entry: &[u8]) {
        let read = read::<V>(stack, at, entry);
        assert!(matches!(read, Err(Unreadable::Foreign(_))), "{read:?}");
    }

    #[test]
    fn what_is_sealed_is_opened_and_shows_nothing_of_itself() {
        let stack = stack(keyring(7, 1));
        for text in ["canary".to_owned(), "canary ".repeat(1000)] {
            let entry = written(&stack, &text);
            assert!(!entry.windows(6).any(|bytes| bytes == b"canary"));
            assert_eq!(entry[32..36], [0, 0, 0, 7], "the entry names its key");
            assert_eq!(read::<String>(&stack, AT, &entry).expect("ours"), text);
            assert_ne!(entry[HEADER + 24..], written(&stack, &text)[HEADER + 24..]);
        }
        let long = written(&stack, &"canary ".repeat(1000));
        let parsed = Envelope::parse(&long).expect("ours");
        assert_eq!(parsed.compression, Compression::Lz4, "compressed first");
        assert!(long.len() < 200);
        let none = written(&stack, &None::<u8>);
        assert_eq!(read::<Option<u8>>(&stack, AT, &none).expect("ours"), None);
        let parsed = Envelope::parse(&none).expect("ours");
        assert_eq!(parsed.outcome, Outcome::None);
    }

    #[test]
    fn each_key_of_the_keyring_reads_and_the_first_one_writes() {
        let (old, new) = (keyring(1, 1), keyring(2, 2));
        let both = new.clone().reading(1, &[1; 32]).expect("another id");
        let entry = written(&stack(old), &7);
        assert_eq!(
            read::<u8>(&stack(both.clone()), AT, &entry).expect("old"),
            7
        );
        is_foreign::<u8>(&stack(new.clone()), AT, &entry);
        let entry = written(&stack(both), &7);
        assert_eq!(read::<u8>(&stack(new), AT, &entry).expect("new"), 7);
    }

    #[test]
    fn without_the_right_key_an_entry_is_foreign() {
        let entry = written(&stack(keyring(7, 1)), &7);
        is_foreign::<u8>(&Stack::default(), AT, &entry);
        is_foreign::<u8>(&stack(keyring(8, 1)), AT, &entry);
        // The same id, another secret: it may be the other process that has the right one.
        is_foreign::<u8>(&stack(keyring(7, 2)), AT, &entry);
        // Nobody without a key may make a value up.
        let plain = written(&Stack::default(), &7);
        is_foreign::<u8>(&stack(keyring(7, 1)), AT, &plain);
        let none = written(&Stack::default(), &None::<u8>);
        is_foreign::<Option<u8>>(&stack(keyring(7, 1)), AT, &none);
    }

    #[test]
    fn an_entry_is_bound_to_its_key_and_to_each_byte_but_the_deadlines() {
        let stack = stack(keyring(7, 1));
        let entry = written(&stack, &"canary");
        is_foreign::<String>(&stack, "hr:v:{c:other}", &entry);
        for at in 0..entry.len() {
            let mut changed = entry.clone();
            changed[at] ^= 1;
            // As an attacker would do.
            envelope::rewrite_checksum(&mut changed);
            let read = read::<String>(&stack, AT, &changed);
            let may_change = (4..20).contains(&at);
            assert_eq!(read.is_ok(), may_change, "{at}");
        }
        let none = written(&stack, &None::<u8>);
        for at in (0..none.len()).filter(|at| !(4..20).contains(at)) {
            let mut changed = none.clone();
            changed[at] ^= 1;
            envelope::rewrite_checksum(&mut changed);
            assert!(read::<Option<u8>>(&stack, AT, &changed).is_err(), "{at}");
        }
        for end in 0..entry.len() {
            let mut cut = entry[..end].to_vec();
            envelope::rewrite_checksum(&mut cut);
            assert!(read::<String>(&stack, AT, &cut).is_err(), "{end}");
        }
    }

    #[test]
    fn ids_are_checked_and_secrets_are_not_shown() {
        for refused in [
            Keyring::new(0, &[1; 32]),
            keyring(1, 1).reading(0, &[1; 32]),
            keyring(1, 1).reading(1, &[1; 32]),
        ] {
            let refused = refused.expect_err("a wrong id");
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        }
        let keyring = keyring(3, 0xab).reading(4, &[0xcd; 32]).expect("another");
        let shown = format!("{keyring:?} {:?}", stack(keyring.clone()));
        assert!(shown.contains('3') && shown.contains('4'), "{shown}");
        assert!(!shown.contains("171") && !shown.contains("205"), "{shown}");
    }

    #[test]
    fn two_caches_read_alike_only_with_one_keyring() {
        let keyring = keyring(1, 1);
        let like = |stack: &Stack| -> DecodesLike { stack.decodes_like() };
        let (one, same) = (stack(keyring.clone()), stack(keyring));
        assert_eq!(like(&one), like(&same));
        let other = stack(self::keyring(1, 1));
        assert_ne!(like(&one), like(&other));
        assert_ne!(like(&one), like(&Stack::default()));
    }
}
