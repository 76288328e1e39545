//! A server that speaks TLS only and asks for certificates; a client that verifies it, shows its
//! own, and asks for its password at each connection, so that it may be rotated.
//!
//! ```text
//! cargo run --example tls --features embedded,tls
//! ```

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use hedgerow::embedded::Server;
use hedgerow::{Client, ErrorKind, client::Credentials, client::Tls};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = tempfile::tempdir()?;
    make_certificates(files.path())?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let _server = start(files.path(), port).await?;
    let url = format!("rediss://localhost:{port}");
    let read = |name: &str| std::fs::read(files.path().join(name));

    let trusting = Tls::new().roots_pem(read("ca.pem")?);
    let known = trusting.clone();
    let known = known.client_pem(read("client.pem")?, read("client.key")?);
    // What a vault, or a file that is replaced, would say.
    let password = Arc::new(Mutex::new("autumn".to_owned()));
    let provider = {
        let password = password.clone();
        move || {
            let password = password.lock().expect("nobody panics").clone();
            async move { Ok(Credentials::user("shop", password)) }
        }
    };
    let builder = Client::builder().url(&url).credentials_from(provider);
    let client = builder.tls(known.clone()).connect().await?;
    let added = client.counter("orders").add(1).await?;
    println!("order {} over mutual TLS", added.value);

    let administrator = Client::builder().url(&url).tls(known);
    let administrator = administrator.connect().await?;
    administrator.ping().await?;
    *password.lock().expect("nobody panics") = "winter".to_owned();
    println!("the next connection says the next password");

    // The server refuses a client without a certificate. A client that does not trust the authority
    // refuses the server.
    for (who, tls) in [("nobody", trusting), ("a stranger", Tls::new())] {
        let Ok(client) = Client::builder().url(&url).tls(tls).connect().await else {
            println!("{who}: this machine trusts nobody");
            continue;
        };
        let error = client.ping().await.expect_err("no way in");
        println!("{who}: {error}");
        assert_eq!(error.kind(), ErrorKind::Tls);
    }
    // TLS that is set up is never left out.
    let plain = Client::builder().url("redis://localhost").tls(Tls::new());
    println!("{}", plain.connect().await.expect_err("refused"));
    Ok(())
}

async fn start(files: &Path, port: u16) -> hedgerow::Result<Server> {
    let path = |name: &str| files.join(name).display().to_string();
    let port = port.to_string();
    Server::start_with(&[
        "--bind",
        "127.0.0.1",
        "--tls-port",
        &port,
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        // While passwords are rotated, both are good.
        "--user",
        "shop",
        "on",
        ">autumn",
        ">winter",
        "~hr:*",
        "&hr:*",
        "+@all",
    ])
    .await
}

/// An authority, and a server and a client that it vouches for.
fn make_certificates(files: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    std::fs::write(files.join("ca.pem"), params.self_signed(&key)?.pem())?;
    let authority = Issuer::new(params, key);
    for (name, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut params = CertificateParams::new(["localhost".to_owned()])?;
        // A name of its own: a certificate that is named as its issuer passes for self-signed.
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;
        std::fs::write(files.join(format!("{name}.pem")), certificate.pem())?;
        std::fs::write(files.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
