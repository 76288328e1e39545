//! TLS servers, as a plain rustls client meets them.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::support::topology::{Clients, Identity, TlsServer};

#[tokio::test]
async fn a_tls_server_is_known_by_its_authority_only() {
    let server = TlsServer::start(Clients::Anyone).await;
    let certificates = &server.certificates;
    for name in ["localhost", "127.0.0.1"] {
        let pong = ping(&server, name, &certificates.authority, None).await;
        assert_eq!(pong.expect("an answer"), "+PONG");
    }
    for (name, authority) in [
        ("localhost", &certificates.stranger),
        ("elsewhere", &certificates.authority),
    ] {
        let refused = ping(&server, name, authority, None).await;
        let refused = refused.expect_err("not trusted").to_string();
        assert!(refused.contains("invalid peer certificate"), "{refused}");
    }
}

#[tokio::test]
async fn a_server_that_asks_its_clients_lets_in_those_it_knows() {
    let server = TlsServer::start(Clients::WithCertificate).await;
    let certificates = &server.certificates;
    let root = &certificates.authority;
    let pong = ping(&server, "localhost", root, Some(&certificates.client)).await;
    assert_eq!(pong.expect("an answer"), "+PONG");
    for client in [None, Some(&certificates.strangers_client)] {
        let refused = ping(&server, "localhost", root, client).await;
        assert!(refused.is_err(), "{refused:?}");
    }
}

/// What the server says to `PING`.
async fn ping(
    server: &TlsServer,
    name: &'static str,
    authority: &Identity,
    client: Option<&Identity>,
) -> io::Result<String> {
    let der = |identity: &Identity| {
        CertificateDer::from_pem_slice(identity.certificate.as_bytes()).expect("PEM")
    };
    let mut roots = RootCertStore::empty();
    roots.add(der(authority)).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some(client) => {
            let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).expect("PEM");
            config
                .with_client_auth_cert(vec![der(client)], key)
                .expect("a pair")
        }
    };
    let stream = TcpStream::connect(server.node.address()).await?;
    let name = ServerName::try_from(name).expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut reply = vec![0; 7];
    stream.read_exact(&mut reply).await?;
    Ok(String::from_utf8_lossy(&reply).trim().to_owned())
}
