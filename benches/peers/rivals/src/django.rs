//! `Django`: the page of the benchmarks, kept by Django's `cache_page` on django-redis and served
//! by gunicorn, as `benches/peers/pages.py` sets it up.
//!
//! Invariant: the processes end when this is dropped. What is measured is a page out of Redis: each
//! render has another stamp, and the stamp stays the same.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::page;
use crate::site::Site;
use crate::slices::Result;

pub(crate) struct Django {
    process: Child,
    address: SocketAddr,
    /// That of the page which was rendered first.
    stamp: String,
    pub(crate) site: Site,
}

impl Django {
    /// Starts it, which installs it first where it is missing, and waits until it serves the page.
    pub(crate) async fn start(redis: &str) -> Result<Self> {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.."));
        let file = root.join("target/bench/page.html");
        std::fs::create_dir_all(root.join("target/bench"))?;
        std::fs::write(&file, page::bytes())?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = Command::new("python3")
            .arg(root.join("benches/peers/pages.py"))
            .args([port.to_string().as_str(), redis])
            .arg(&file)
            .spawn()?;
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut django = Self {
            process,
            address,
            stamp: String::new(),
            site: Site::at(address),
        };
        while django.site.ask().await.is_err() {
            if let Some(status) = django.process.try_wait()? {
                return Err(format!("pages.py has ended: {status}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        django.stamp = django.seen().await?;
        django.hits(async {}).await?;
        Ok(django)
    }

    /// Runs `compared`. Fails unless the page is still the one that was rendered first: then each
    /// answer meanwhile was that page out of Redis, since a render would have replaced it.
    pub(crate) async fn hits<T>(&self, compared: impl Future<Output = T>) -> Result<T> {
        let compared = compared.await;
        // On new connections, so that both processes are likely to be asked.
        for _ in 0..8 {
            let (seen, first) = (self.seen().await?, &self.stamp);
            if seen != *first {
                return Err(format!("Django has rendered again: {seen}, after {first}").into());
            }
        }
        Ok(compared)
    }

    /// Asks for the page on a connection of its own. Returns its stamp.
    async fn seen(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(page::REQUEST.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(page::bytes()) {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err("the page of Django has ended early".into());
            }
        }
        let head = String::from_utf8_lossy(&answer);
        let stamp = head.lines().find_map(|it| it.strip_prefix("X-Rendered: "));
        Ok(stamp.ok_or("the page of Django has no stamp")?.to_owned())
    }
}

impl Drop for Django {
    fn drop(&mut self) {
        // At SIGTERM, gunicorn ends its workers; `Child::kill` would leave them.
        let mut kill = Command::new("kill");
        let ended = kill.arg(self.process.id().to_string()).status();
        if ended.is_ok_and(|status| status.success()) {
            let _ = self.process.wait();
        }
    }
}
