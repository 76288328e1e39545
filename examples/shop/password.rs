//! Passwords are stored as salted digests: PBKDF2 with HMAC-SHA-256 (RFC 8018), which the crates
//! that are here already can calculate.
//!
//! Take a crate for it in your service, such as `argon2`, and far more rounds: these few keep the
//! example and its tests quick.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// Returns what is stored for a password.
pub(crate) fn digest(password: &str) -> String {
    let salt: u128 = rand::random();
    digest_with(password, &format!("{salt:032x}"))
}

/// Whether a password is that of a stored digest.
pub(crate) fn fits(password: &str, stored: &str) -> bool {
    let salt = stored.split(':').next().unwrap_or_default();
    let digest = digest_with(password, salt);
    digest.as_bytes().ct_eq(stored.as_bytes()).into()
}

fn digest_with(password: &str, salt: &str) -> String {
    let keyed = Hmac::<Sha256>::new_from_slice(password.as_bytes());
    let keyed = keyed.expect("HMAC takes keys of any length");
    let round = |bytes: &[u8]| keyed.clone().chain_update(bytes).finalize().into_bytes();
    // The first block, which is all that is needed.
    let mut last = round(&[salt.as_bytes(), &1_u32.to_be_bytes()].concat());
    let mut sum = last;
    for _ in 1..ROUNDS {
        last = round(&last);
        sum.iter_mut()
            .zip(last)
            .for_each(|(sum, byte)| *sum ^= byte);
    }
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{salt}:{hex}")
}

const ROUNDS: u32 = 5_000;
