//! Who the client is at a server, and which servers it trusts.

use std::error::Error as StdError;
use std::sync::Arc;

use super::ClientBuilder;
use crate::net::credentials::{Credentials, Login};
#[cfg(feature = "tls")]
use crate::net::tls::Tls;

impl ClientBuilder {
    /// User and password of the servers that hold the data, instead of what their URLs say. The
    /// URLs of sentinels keep their own.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.login = Some(Login::Fixed(credentials));
        self
    }

    /// As [`credentials`](Self::credentials), asked of `provider` for each new connection, so that
    /// a password may be rotated, or be valid for minutes only. For an open connection it is asked
    /// again before what it answered [expires](Credentials::expires_in).
    ///
    /// The provider has what is left of the connect timeout, and its answer is used once. While a
    /// rotation is under way it may be behind the server: `WRONGPASS` is answered by asking again,
    /// until the deadline of the call. An error of the provider ends the call with
    /// [`ErrorKind::Unauthenticated`](crate::ErrorKind::Unauthenticated), and is its `source()`.
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

    /// How servers at `rediss://` are verified; with a URL of another scheme it is refused, lest
    /// anybody think that connection encrypted.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }
}
