//! A way to the server that loses replies.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hedgerow::{Client, ClientBuilder};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::server::Server;

/// Stands between a client and a server; ends when it is dropped.
pub struct Proxy {
    url: String,
    lose: Arc<AtomicBool>,
    lost: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub fn before(server: &Server) -> Self {
        let upstream = server.url().trim_start_matches("unix://").to_owned();
        let socket = format!("{upstream}.proxy");
        let listener = UnixListener::bind(Path::new(&socket)).expect("the server's directory");
        let (lose, lost) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let state = (lose.clone(), Arc::clone(&lost));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = UnixStream::connect(&upstream).await {
                    let (lose, lost) = state.clone();
                    tokio::spawn(carry(client, server, lose, lost));
                }
            }
        });
        Self {
            url: format!("unix://{socket}"),
            lose,
            lost,
            accepting,
        }
    }

    pub fn builder(&self) -> ClientBuilder {
        Client::builder().url(&self.url)
    }

    /// Loses the next thing that the server says, and the connection with it.
    pub fn lose_next_reply(&self) {
        self.lose.store(true, Ordering::SeqCst);
    }

    /// How many replies were lost.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection until either side ends or a reply is to be lost.
async fn carry(
    mut client: UnixStream,
    mut server: UnixStream,
    lose: Arc<AtomicBool>,
    lost: Arc<AtomicUsize>,
) {
    let (mut asked, mut said) = (vec![0; 65536], vec![0; 65536]);
    loop {
        let carried = tokio::select! {
            length = client.read(&mut asked) => match length {
                Ok(length) if length > 0 => server.write_all(&asked[..length]).await,
                _ => return,
            },
            length = server.read(&mut said) => match length {
                Ok(length) if length > 0 => {
                    if lose.swap(false, Ordering::SeqCst) {
                        lost.fetch_add(1, Ordering::SeqCst);
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
