//! `Tls`: the trusted roots and the client certificate of encrypted connections.
//!
//! Invariant: a server is accepted only if a trusted root vouches for its certificate, and the
//! certificate names the intended server. No option turns either check off. Nothing but the
//! handshake is sent to a server before it is accepted. Nothing here prints key material.
//!
//! [`Endpoint`](super::endpoint::Endpoint) checks the settings, and
//! [`dial`](super::connection::dial) makes the handshake.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore};

use crate::error::{Error, ErrorKind, Result};
use crate::net::stream::tapped::Tapped;
use crate::net::stream::traffic::Traffic;

/// How servers at `rediss://` prove their identity to the client, and how the client proves its
/// own; see [`ClientBuilder::tls`](crate::ClientBuilder::tls).
///
/// TLS 1.2 and 1.3. Certificates are always verified.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use hedgerow::{Client, client::Tls};
///
/// let tls = Tls::new()
///     .roots_pem(std::fs::read("ca.pem")?)
///     .client_pem(std::fs::read("client.pem")?, std::fs::read("client.key")?);
/// let client = Client::builder().url("rediss://redis.internal:6380").tls(tls).connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[must_use = "give it to `ClientBuilder::tls`"]
pub struct Tls {
    roots: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
    server_name: Option<String>,
}

impl Tls {
    /// Trusts the roots of the operating system (or of `SSL_CERT_FILE` and `SSL_CERT_DIR`), and
    /// shows no certificate. These are the defaults of `rediss://`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts these certificates, in PEM, and no others.
    pub fn roots_pem(mut self, roots: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(roots.into());
        self
    }

    /// Shows this certificate chain, leaf first, to a server that asks for one (mutual TLS). `key`
    /// is the unencrypted private key of the leaf. Both are PEM.
    pub fn client_pem(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.client = Some((chain.into(), key.into()));
        self
    }

    /// Sets the name that the certificates of the servers must carry, instead of the host in the
    /// URL. Use it for clusters that announce bare addresses, or for a tunnel.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Checks all settings.
    pub(crate) fn channel(&self) -> Result<Channel> {
        let server_name = match &self.server_name {
            None => None,
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|error| {
                Error::invalid("TLS: the server name is neither a DNS name nor an address")
                    .with_source(error)
            })?),
        };
        // Named here, so that no default of the process that another crate installs is used.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| {
                Error::invalid("TLS: no protocol version can be used").with_source(error)
            })?
            .with_root_certificates(self.trusted()?);
        let config = match &self.client {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = certificates(
                    chain,
                    "TLS: the client's certificate chain is no PEM with certificates",
                )?;
                // Without the source: its text could quote the key.
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
                    Error::invalid("TLS: the client's key is no unencrypted private key in PEM")
                })?;
                config.with_client_auth_cert(chain, key).map_err(|error| {
                    Error::invalid("TLS: the client's certificate and key do not fit each other")
                        .with_source(error)
                })?
            }
        };
        Ok(Channel(Arc::new(Inner {
            connector: TlsConnector::from(Arc::new(config)),
            server_name,
        })))
    }

    /// The roots that the caller gave, or those of the system.
    fn trusted(&self) -> Result<RootCertStore> {
        let mut store = RootCertStore::empty();
        match &self.roots {
            Some(pem) => {
                const BAD: &str = "TLS: the roots are no PEM with certificates";
                for root in certificates(pem, BAD)? {
                    store
                        .add(root)
                        .map_err(|error| Error::invalid(BAD).with_source(error))?;
                }
            }
            None => {
                // Errors are ignored here: a root that cannot be read does not make the others less
                // trusted.
                let found = rustls_native_certs::load_native_certs();
                store.add_parsable_certificates(found.certs);
                if store.is_empty() {
                    return Err(Error::invalid(
                        "TLS: the system has no trusted roots; install them (ca-certificates), \
                         name them in SSL_CERT_FILE, or give yours with `Tls::roots_pem`",
                    ));
                }
            }
        }
        Ok(store)
    }
}

/// A checked [`Tls`], which opens encrypted connections.
#[derive(Clone)]
pub(crate) struct Channel(Arc<Inner>);

struct Inner {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl Channel {
    /// Makes the TLS handshake with the server, which must prove that it is `host`, or the name
    /// that the caller set.
    ///
    /// Cancel safety: dropping the future closes the stream.
    pub(crate) async fn secured(
        &self,
        host: &str,
        stream: Tapped<TcpStream, Arc<Traffic>>,
    ) -> Result<TlsStream<Tapped<TcpStream, Arc<Traffic>>>> {
        // Checked against the announced address, unless the caller set one name for all servers.
        let name = match &self.0.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(|error| {
                failed("the host in the URL is no name that a certificate could carry")
                    .with_source(error)
            })?,
        };
        match self.0.connector.connect(name, stream).await {
            Ok(stream) => Ok(stream),
            Err(error) => Err(explained(&error).unwrap_or_else(|| {
                Error::new(
                    ErrorKind::Unreachable,
                    "{server} ended the connection in the TLS handshake; does it speak TLS on this \
                     port, or has it no more connections to give (maxclients)?",
                )
            })
            .with_source(error)),
        }
    }
}

/// Extracts the TLS error behind a failure, if there is one. With TLS 1.3 a server reports a
/// missing client certificate only after the handshake, on the first read. So callers that read
/// first must check here.
pub(crate) fn explained(error: &(dyn StdError + 'static)) -> Option<Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        // The driver keeps causes in an `Arc`, whose own source would skip the cause itself.
        if let Some(shared) = error.downcast_ref::<Arc<dyn StdError + Send + Sync>>() {
            next = Some(&**shared);
            continue;
        }
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if let Some(inner) = inner {
            let inner: &(dyn StdError + 'static) = inner;
            if let Some(cause) = inner.downcast_ref() {
                return Some(reason(cause));
            }
        }
        if let Some(cause) = error.downcast_ref() {
            return Some(reason(cause));
        }
        next = error.source();
    }
    None
}

/// Translates a TLS error, and adds what to do.
fn reason(error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidCertificate(error) => failed(match error {
            CertificateError::UnknownIssuer => {
                "no trusted root vouches for the server's certificate; give its authority with \
                 `Tls::roots_pem`"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the server's certificate is for another name; use that in the URL or in \
                 `Tls::server_name`"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server's certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet; is the clock right?"
            }
            _ => "the server's certificate is not accepted",
        }),
        rustls::Error::AlertReceived(alert) => Error::new(
            ErrorKind::Tls,
            format!(
                "{{server}} refuses the TLS connection ({alert:?}); does it ask for a client \
                 certificate of its own authority (`Tls::client_pem`)?"
            ),
        ),
        rustls::Error::InvalidMessage(_) => {
            failed("what answers does not speak TLS; is this the plaintext port?")
        }
        rustls::Error::PeerIncompatible(_) => {
            failed("it speaks no TLS 1.2 or 1.3, or none of its ciphers is safe")
        }
        _ => failed("the handshake failed"),
    }
}

fn failed(why: &str) -> Error {
    Error::new(ErrorKind::Tls, format!("TLS with {{server}} failed: {why}"))
}

/// Parses at least one certificate. `bad` is the error if there is none.
fn certificates(pem: &[u8], bad: &'static str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(Error::invalid(bad)),
        Ok(found) => Ok(found),
        // Without the source: if a key was given here by mistake, the text could quote it.
        Err(_) => Err(Error::invalid(bad)),
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots = match &self.roots {
            None => "of the system",
            Some(_) => "given",
        };
        f.debug_struct("Tls")
            .field("roots", &roots)
            .field("client_certificate", &self.client.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}
