//! A way to the server that loses replies, falls silent, and remembers what was asked.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hedgerow::{Client, ClientBuilder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::server::Server;

/// Stands between a client and a server; ends when it is dropped.
pub struct Proxy {
    url: String,
    upstream: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    lose: AtomicBool,
    lost: AtomicUsize,
    accepted: AtomicUsize,
    /// Connections numbered below this are silent.
    silent: AtomicUsize,
    asked: Mutex<Vec<Vec<u8>>>,
}

impl Proxy {
    pub fn before(server: &Server) -> Self {
        let upstream = server.url().trim_start_matches("unix://").to_owned();
        let socket = format!("{upstream}.proxy");
        let listener = UnixListener::bind(Path::new(&socket)).expect("the server's directory");
        let shared = Arc::new(Shared::default());
        let (to, state) = (upstream.clone(), shared.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = UnixStream::connect(&to).await {
                    tokio::spawn(carry(client, server, state.clone()));
                }
            }
        });
        Self {
            url: format!("unix://{socket}"),
            upstream,
            shared,
            accepting,
        }
    }

    pub fn builder(&self) -> ClientBuilder {
        Client::builder().url(&self.url)
    }

    /// Loses the next thing that the server says, and the connection with it.
    pub fn lose_next_reply(&self) {
        self.shared.lose.store(true, Ordering::SeqCst);
    }

    /// How many replies were lost.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// From now on nothing comes through on the connections that there are, though they stay open.
    pub fn fall_silent(&self) {
        let accepted = self.shared.accepted.load(Ordering::SeqCst);
        self.shared.silent.store(accepted, Ordering::SeqCst);
    }

    /// Sends the first thing that was asked with all of `words` in it once more, as a copy of it
    /// would arrive late; returns the answer.
    pub async fn ask_again(&self, words: &[&str]) -> String {
        let is_it = |asked: &&Vec<u8>| {
            let text = String::from_utf8_lossy(asked);
            words.iter().all(|word| text.contains(word))
        };
        let asked = self.shared.asked().iter().find(is_it).cloned();
        let asked = asked.expect("it was asked");
        let upstream = UnixStream::connect(&self.upstream).await;
        let mut upstream = upstream.expect("a server");
        upstream.write_all(&asked).await.expect("sent");
        let mut said = vec![0; 65536];
        let length = upstream.read(&mut said).await.expect("an answer");
        String::from_utf8_lossy(&said[..length]).into_owned()
    }
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection until either side ends or a reply is to be lost.
async fn carry(mut client: UnixStream, mut server: UnixStream, shared: Arc<Shared>) {
    let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
    let silent = || number < shared.silent.load(Ordering::SeqCst);
    let (mut asked, mut said) = (vec![0; 65536], vec![0; 65536]);
    loop {
        let carried = tokio::select! {
            length = client.read(&mut asked) => match length {
                Ok(length) if length > 0 && silent() => Ok(()),
                Ok(length) if length > 0 => {
                    shared.asked().push(asked[..length].to_vec());
                    server.write_all(&asked[..length]).await
                }
                _ => return,
            },
            length = server.read(&mut said) => match length {
                Ok(length) if length > 0 && silent() => Ok(()),
                Ok(length) if length > 0 => {
                    if shared.lose.swap(false, Ordering::SeqCst) {
                        shared.lost.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    client.write_all(&said[..length]).await
                }
                _ => return,
            },
        };
        if carried.is_err() {
            return;
        }
    }
}
