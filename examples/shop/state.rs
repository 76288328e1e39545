//! `Shop`: what every handler uses. Cheap to clone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::ConnectInfo;
use hedgerow::http::{ClientAddress, PageCache};
use hedgerow::limit::RateLimits;
use hedgerow::session::SessionStore;
use hedgerow::{Cache, Client, Outage};

use crate::args::Args;
use crate::health::RedisWatch;
use crate::store::Store;
use crate::{account, catalogue, login_limits};

#[derive(Debug, Clone)]
pub(crate) struct Shop {
    pub(crate) client: Client,
    pub(crate) store: Store,
    /// Data of products, under the pages.
    pub(crate) data: Cache,
    pub(crate) pages: PageCache,
    pub(crate) sessions: SessionStore,
    pub(crate) login_limits: RateLimits,
    /// How limits learn the address of a visitor.
    pub(crate) address: ClientAddress,
    pub(crate) redis: RedisWatch,
    /// The name of this instance.
    pub(crate) name: Arc<str>,
    renders: Arc<AtomicU64>,
}

impl Shop {
    /// Does no I/O on Redis: the shop starts while Redis is down.
    pub(crate) fn open(args: &Args, redis: &str) -> Result<Self> {
        let database = args.database.as_deref();
        let database = database.context("an instance needs --database")?;
        // Without one nobody can log in as the administrator.
        let admin_password = std::env::var(ADMIN_PASSWORD);
        let admin_password = admin_password.unwrap_or_else(|_| random_word());
        let patience = Duration::from_secs(args.patience);
        let client = Client::builder()
            .url(redis)
            .namespace("shop")
            .name(&format!("shop-{}", args.name))
            .deadline(patience)
            .cache_deadline(patience)
            .open()?;
        let address = ClientAddress::peer(|extensions| {
            let peer = extensions.get::<ConnectInfo<SocketAddr>>();
            peer.map(|ConnectInfo(peer)| peer.ip())
        });
        Ok(Self {
            address: address.x_forwarded_for(&args.trusted_proxy)?,
            store: Store::open(database, &admin_password)?,
            // While Redis is out, each instance loads for itself.
            data: client.cache("data").outage(Outage::Bypass),
            pages: catalogue::page_cache(&client),
            sessions: account::session_store(&client),
            login_limits: login_limits::of(&client, args.logins_per_minute),
            redis: RedisWatch::start(&client),
            name: args.name.as_str().into(),
            renders: Arc::default(),
            client,
        })
    }

    /// Counts a page that is rendered, and returns how many there were.
    pub(crate) fn one_more_render(&self) -> u64 {
        self.renders.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A word that nobody can guess.
pub(crate) fn random_word() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// The environment variable with the password of the administrator: a command line can be seen by
/// every user of the machine.
pub(crate) const ADMIN_PASSWORD: &str = "SHOP_ADMIN_PASSWORD";
