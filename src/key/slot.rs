//! Cluster slots: the slot of a key, and the sixteen slot groups.
//!
//! Invariant: [`slot`] agrees with `CLUSTER KEYSLOT`, and each slot group has a fixed hash tag in
//! its own sixteenth of the slots.
//!
//! [`Key`](super::Key) uses it; callers may use [`slot`] to predict where a key is served.

/// The cluster slot of a key, as `CLUSTER KEYSLOT` computes it (CRC16/XMODEM of the hash tag,
/// modulo 16,384; Redis Cluster specification, "Keys distribution model").
pub fn slot(key: &[u8]) -> u16 {
    let crc = tagged(key).iter().fold(0u16, |crc, &byte| {
        (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)]
    });
    crc % SLOTS
}

/// How many slots a cluster has.
pub(crate) const SLOTS: u16 = 16_384;

/// A hash tag from the middle of each sixteenth of the slots. It is part of the format: processes
/// that disagreed on it would not see each other's invalidations.
pub(super) const SLOT_GROUPS: [&str; 16] = [
    "18", "3", "65", "223", "19", "2", "64", "222", "265", "23", "218", "49", "264", "22", "219",
    "48",
];

/// The hash tag of a key, or the key itself if it has none.
pub(super) fn tagged(key: &[u8]) -> &[u8] {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        // An empty tag does not count, by the specification.
        (close > 0).then(|| &rest[..close])
    });
    tag.unwrap_or(key)
}

/// CRC16/XMODEM: polynomial 0x1021, initial value 0, not reflected.
const CRC16: [u16; 256] = {
    let mut table = [0u16; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_agree_with_the_specification() {
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(slot(b"foo{}{bar}"), slot(b"foo{}{bar}".as_slice()));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
    }

    proptest! {
        #[test]
        fn hash_tag_rule_matches_a_plain_reading_of_the_specification(key in proptest::collection::vec(
            prop_oneof![Just(b'{'), Just(b'}'), any::<u8>()], 0..40))
        {
            let text: Vec<u8> = match key.iter().position(|&b| b == b'{') {
                Some(open) => match key[open + 1..].iter().position(|&b| b == b'}') {
                    Some(length) if length > 0 => key[open + 1..open + 1 + length].to_vec(),
                    _ => key.clone(),
                },
                None => key.clone(),
            };
            let mut crc = 0u16;
            for byte in text {
                crc ^= u16::from(byte) << 8;
                for _ in 0..8 {
                    crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
                }
            }
            prop_assert_eq!(slot(&key), crc % 16_384);
        }
    }
}
