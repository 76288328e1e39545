//! Certificates made on the spot, and servers that speak TLS only.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use super::{Node, Port, Recipe};

/// A leaf, or an authority, in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// An authority, a server and a client that it vouches for, and an authority that nobody asked.
#[derive(Debug)]
pub struct Certificates {
    pub authority: Identity,
    pub server: Identity,
    pub client: Identity,
    pub stranger: Identity,
    /// A client that the stranger vouches for.
    pub strangers_client: Identity,
}

impl Certificates {
    pub fn make() -> Self {
        let (authority, issuer) = authority("hedgerow tests");
        let (stranger, strangers) = self::authority("somebody else");
        Self {
            server: leaf("localhost", &issuer, ExtendedKeyUsagePurpose::ServerAuth),
            client: leaf("client", &issuer, ExtendedKeyUsagePurpose::ClientAuth),
            strangers_client: leaf("client", &strangers, ExtendedKeyUsagePurpose::ClientAuth),
            authority,
            stranger,
        }
    }
}

/// Whether a server asks its clients for certificates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clients {
    Anyone,
    WithCertificate,
}

/// A server that is reached by TLS only (and by its administrator).
#[derive(Debug)]
pub struct TlsServer {
    pub node: Node,
    pub certificates: Certificates,
}

impl TlsServer {
    pub async fn start(clients: Clients) -> Self {
        let certificates = Certificates::make();
        let node = with_tls(Recipe::new(), &certificates, clients).on_tls(Port::free());
        Self {
            node: node.start().await,
            certificates,
        }
    }
}

/// What a node needs to speak TLS.
pub fn with_tls(recipe: Recipe, certificates: &Certificates, clients: Clients) -> Recipe {
    let ask = match clients {
        Clients::Anyone => "no",
        Clients::WithCertificate => "yes",
    };
    recipe
        .file("ca.pem", certificates.authority.certificate.clone())
        .file("server.pem", certificates.server.certificate.clone())
        .file("server.key", certificates.server.key.clone())
        .with(&["--tls-ca-cert-file", "ca.pem"])
        .with(&["--tls-cert-file", "server.pem"])
        .with(&["--tls-key-file", "server.key"])
        .with(&["--tls-auth-clients", ask])
}

fn authority(name: &str) -> (Identity, Issuer<'static, KeyPair>) {
    let mut params = named(name, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    let identity = Identity {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    };
    (identity, Issuer::new(params, key))
}

/// A certificate that is nobody's authority: rustls refuses one that is both.
fn leaf(name: &str, issuer: &Issuer<'static, KeyPair>, usage: ExtendedKeyUsagePurpose) -> Identity {
    let mut params = named(name, &["localhost", "127.0.0.1"]);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    Identity {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

fn named(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.into()).collect();
    let mut params = CertificateParams::new(hosts).expect("good names");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
