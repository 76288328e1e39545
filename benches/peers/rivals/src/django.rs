//! `Django`: the page of the benchmarks, kept by Django's `cache_page` on django-redis and served
//! by gunicorn, as `benches/peers/pages.py` sets it up.
//!
//! Invariant: the processes end when this is dropped.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::page;
use crate::site::Site;
use crate::slices::Result;

pub(crate) struct Django {
    process: Child,
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
        let site = Site::at((Ipv4Addr::LOCALHOST, port).into());
        let mut django = Self { process, site };
        while django.site.ask().await.is_err() {
            if let Some(status) = django.process.try_wait()? {
                return Err(format!("pages.py has ended: {status}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(django)
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
