//! `Credentials`: user and password for a server, fixed at the start or asked for at each connect.
//!
//! Invariant: nothing here prints a user or a password. What a provider returns is shown to the
//! server once, and is not kept.
//!
//! [`dial`](super::connection::dial) asks for them at each connect, and
//! [`reauth`](super::connection::reauth) before they expire.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};

/// A user of the server, and its password or token.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: String,
    /// When the server closes a connection that was opened with them, if it does.
    pub(crate) expires: Option<Instant>,
}

impl Credentials {
    /// The default user with this password (`requirepass`).
    pub fn password(password: impl Into<String>) -> Self {
        Self {
            user: None,
            password: password.into(),
            expires: None,
        }
    }

    /// An ACL user with its password.
    pub fn user(name: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: Some(name.into()),
            password: password.into(),
            expires: None,
        }
    }

    /// Sets how long these credentials last: the server closes a connection this long after it was
    /// shown them, as managed services do with tokens. The time counts from this call.
    ///
    /// An open connection gets fresh credentials before that. The provider is asked again when
    /// about three quarters of the time have passed, and the server gets `AUTH` on the open
    /// connection, so no call notices. If the provider fails, or the server refuses, both are asked
    /// again at growing pauses while the old credentials last. Then the connection is given up, and
    /// the next call connects anew.
    ///
    /// Use this with [`ClientBuilder::credentials_from`](crate::ClientBuilder::credentials_from).
    /// [`ClientBuilder::credentials`](crate::ClientBuilder::credentials) refuses it, because it has
    /// no provider to ask for fresh ones.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use hedgerow::client::Credentials;
    /// # let token = "secret";
    /// // A token of Microsoft Entra ID is good for an hour or so; it says how long.
    /// let left = Duration::from_secs(3_540);
    /// let credentials = Credentials::user("object-id", token).expires_in(left);
    /// ```
    pub fn expires_in(mut self, time: Duration) -> Self {
        // A time that overflows never comes, so the credentials do not expire.
        self.expires = Instant::now().checked_add(time);
        self
    }
}

/// Where credentials come from.
#[derive(Clone)]
pub(crate) enum Login {
    Fixed(Credentials),
    Asked(Provider),
}

type Provider = Arc<
    dyn Fn() -> BoxFuture<'static, Result<Credentials, Box<dyn StdError + Send + Sync>>>
        + Send
        + Sync,
>;

impl Login {
    /// The credentials for a connect that happens now.
    ///
    /// Cancel safety: that of the provider.
    pub(crate) async fn credentials(&self) -> Result<Credentials> {
        match self {
            Self::Fixed(credentials) => Ok(credentials.clone()),
            Self::Asked(provider) => provider().await.map_err(|error| {
                Error::new(
                    ErrorKind::Unauthenticated,
                    "the provider of credentials has none; its own error says why",
                )
                .with_source(error)
            }),
        }
    }

    /// Whether they expire and there is no provider to ask for others.
    pub(crate) fn runs_out(&self) -> bool {
        matches!(self, Self::Fixed(credentials) if credentials.expires.is_some())
    }

    /// Whether the next connect may get other credentials.
    pub(crate) fn may_change(&self) -> bool {
        matches!(self, Self::Asked(_))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed(_) => "Fixed(hidden)",
            Self::Asked(_) => "Asked(a provider)",
        })
    }
}
