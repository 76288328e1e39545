//! `Name`: a name that a caller gave, as it is used and as it is shown.
//!
//! Invariant: the real name of a [`Name`] reaches a text only through [`Name::real`], which spells
//! keys. `Debug`, errors, spans and events take a [`Shown`], which holds digits if names are
//! hidden. The digits are calculated when something is shown, so that calls that succeed do not pay
//! for them. All primitives use it.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// How errors, `Debug`, spans and events show names: see
/// [`ClientBuilder::hide_keys`](crate::ClientBuilder::hide_keys).
///
/// ```
/// # fn example(secret: &[u8]) -> hedgerow::Result<()> {
/// use hedgerow::{Client, client::HideKeys};
///
/// let client = Client::builder()
///     .url("redis://127.0.0.1:6379")
///     .hide_keys(HideKeys::keyed(secret))
///     .open()?;
/// # drop(client);
/// # Ok(())
/// # }
/// # example(b"from your secret store").unwrap();
/// ```
#[derive(Clone, Default)]
pub struct HideKeys(Hiding);

#[derive(Clone, Default)]
enum Hiding {
    #[default]
    Off,
    Digest,
    // Shared, since each name keeps the setting.
    Keyed(Arc<Secret>),
}

// No `Debug`: the secret must not reach a log.
struct Secret(Box<[u8]>);

impl HideKeys {
    /// Names are shown unchanged: the default.
    pub const fn off() -> Self {
        Self(Hiding::Off)
    }

    /// Names are shown as the first eight hexadecimal digits of their SHA-256, which `printf %s
    /// NAME | sha256sum` prints, too.
    ///
    /// Anyone can calculate them. A reader of the digits who can list likely names (user numbers,
    /// e-mail addresses) finds out which name it is. [`keyed`](Self::keyed) prevents that.
    pub const fn digest() -> Self {
        Self(Hiding::Digest)
    }

    /// Names are shown as the first eight hexadecimal digits of their HMAC-SHA-256 under `secret`,
    /// which `printf %s NAME | openssl dgst -sha256 -hmac SECRET` prints, too.
    ///
    /// Give all processes of a service the same secret, so that a name has the same digits in all
    /// of their logs. 32 random bytes are long enough.
    pub fn keyed(secret: impl AsRef<[u8]>) -> Self {
        Self(Hiding::Keyed(Arc::new(Secret(secret.as_ref().into()))))
    }

    /// Returns `name` as it may be shown. An empty name has nothing to hide.
    pub(crate) fn show<'n>(&self, name: &'n str) -> Shown<'n> {
        match &self.0 {
            Hiding::Off => Shown::plain(name),
            _ if name.is_empty() => Shown::plain(name),
            Hiding::Digest => Shown::digits(&Sha256::digest(name)),
            Hiding::Keyed(secret) => Shown::digits(&secret.of(name)),
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        matches!(self.0, Hiding::Off)
    }
}

impl Secret {
    /// Returns the HMAC-SHA-256 of `name` under this secret.
    fn of(&self, name: &str) -> [u8; 32] {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0);
        let mac = mac.expect("HMAC takes keys of any length");
        mac.chain_update(name).finalize().into_bytes().into()
    }
}

impl fmt::Debug for HideKeys {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Hiding::Off => "Off",
            Hiding::Digest => "Digest",
            Hiding::Keyed(_) => "Keyed(hidden)",
        })
    }
}

/// A name that a caller gave. Names are equal if the real names are, however they are shown.
#[derive(Clone)]
pub(crate) struct Name {
    /// Shared by all clones of a handle.
    real: Arc<str>,
    // Kept with the name, so that code that shows it need not know the client.
    hide: HideKeys,
}

impl Name {
    pub(crate) fn new(real: &str, hide: &HideKeys) -> Self {
        Self {
            real: real.into(),
            hide: hide.clone(),
        }
    }

    /// Returns the same name, to be shown as `hide` says.
    pub(crate) fn shown_as(&self, hide: &HideKeys) -> Self {
        Self {
            real: self.real.clone(),
            hide: hide.clone(),
        }
    }

    /// Returns the name itself. It spells keys and must not become part of a text.
    pub(crate) fn real(&self) -> &str {
        &self.real
    }

    /// Returns the name as it may be shown.
    pub(crate) fn shown(&self) -> Shown<'_> {
        self.hide.show(&self.real)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.real == other.real
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.real.hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.shown().as_str(), f)
    }
}

/// A name as it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown<'n> {
    text: Cow<'n, str>,
    hidden: bool,
}

impl<'n> Shown<'n> {
    fn plain(name: &'n str) -> Self {
        Self {
            text: name.into(),
            hidden: false,
        }
    }

    fn digits(digest: &[u8]) -> Self {
        let mut text = String::with_capacity(2 * BYTES);
        for byte in &digest[..BYTES] {
            let _ = write!(text, "{byte:02x}");
        }
        Self {
            text: text.into(),
            hidden: true,
        }
    }

    /// Several names in one text, none of which is hidden.
    pub(crate) fn plain_list(text: String) -> Self {
        Self {
            text: text.into(),
            hidden: false,
        }
    }

    /// Several names in one text, at least one of which is hidden.
    pub(crate) fn hidden_list(text: String) -> Self {
        Self {
            text: text.into(),
            hidden: true,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns whether digits replace the name.
    pub(crate) fn is_hidden(&self) -> bool {
        self.hidden
    }
}

impl<'n> From<&'n Name> for Shown<'n> {
    fn from(name: &'n Name) -> Self {
        name.shown()
    }
}

/// How many bytes of a digest are shown, two digits each.
const BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: operators compare the digits with those in older logs, and calculate them by the
    /// commands in the documentation.
    #[test]
    fn digits_are_those_that_the_documented_commands_print() {
        let shown = |hide: HideKeys, name| hide.show(name).as_str().to_owned();
        assert_eq!(shown(HideKeys::off(), "session:7"), "session:7");
        assert_eq!(shown(HideKeys::digest(), "session:7"), "513e80f4");
        assert_eq!(shown(HideKeys::keyed("secret"), "session:7"), "5be64994");
        assert_eq!(shown(HideKeys::keyed("another"), "session:7"), "790488f3");
        assert_eq!(shown(HideKeys::digest(), ""), "");
    }

    #[test]
    fn a_name_is_the_same_however_it_is_shown() {
        let (shown, hidden) = (HideKeys::off(), HideKeys::digest());
        let (one, two) = (Name::new("a", &shown), Name::new("a", &hidden));
        assert_eq!(one, two);
        assert_ne!(one, Name::new("b", &shown));
        assert_eq!(format!("{one:?} {two:#?}"), r#""a" "ca978112""#);
    }
}
