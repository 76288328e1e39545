//! Login and trust: the settings of [`ClientBuilder`] that say who the client is, and which servers
//! it trusts.
//!
//! Invariant: nothing is sent from here. `open` checks these settings, and each connection uses
//! them.

use std::error::Error as StdError;
use std::sync::Arc;

use super::ClientBuilder;
use crate::net::credentials::{Credentials, Login};
#[cfg(feature = "tls")]
use crate::net::tls::Tls;

impl ClientBuilder {
    /// The user and password for the servers that hold the data. They replace those in their URLs.
    /// The URLs of sentinels keep their own.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.login = Some(Login::Fixed(credentials));
        self
    }

    /// As [`credentials`](Self::credentials), but `provider` is asked for each new connection. So a
    /// password may be rotated, or be valid for minutes only. For an open connection the provider
    /// is asked again before its answer [expires](Credentials::expires_in).
    ///
    /// The provider has what is left of the connect timeout, and its answer is used once. During a
    /// rotation the provider may be behind the server. So after `WRONGPASS` it is asked again,
    /// until the deadline of the call. If the provider fails, the call fails with
    /// [`ErrorKind::Unauthenticated`](crate::ErrorKind::Unauthenticated); the provider's error is
    /// its `source()`.
    ///
    /// ```no_run
    /// # async fn example() -> hedgerow::Result<()> {
    /// use hedgerow::{Client, client::Credentials};
    ///
    /// let client = Client::builder()
    ///     .url("redis://127.0.0.1:6379")
    ///     .credentials_from(|| async {
    ///         let password = std::fs::read_to_string("/run/secrets/redis")?;
    ///         Ok(Credentials::user("app", password.trim_end()))
    ///     })
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn credentials_from<P, F>(mut self, provider: P) -> Self
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Credentials, Box<dyn StdError + Send + Sync>>> + Send + 'static,
    {
        self.login = Some(Login::Asked(Arc::new(move || Box::pin(provider()))));
        self
    }

    /// How servers at `rediss://` are verified. With a URL of another scheme the client is refused:
    /// otherwise that connection could be taken for an encrypted one.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }
}
