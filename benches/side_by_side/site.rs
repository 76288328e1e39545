//! `Site`: a page that a server on loopback serves, and the connections that ask for it.
//!
//! Invariant: what counts is an answer of 200 whose body is the page, byte for byte. The benchmarks
//! of pages ask it, here and in `benches/peers/rivals`.
//!
//! The client does as little as it can: it shares the machine with the server, so whatever it does
//! draws the two sides of a ratio together. It sends bytes that are made beforehand, on connections
//! that stay open, and of the head of an answer it reads the status and the end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tower::{Service, ServiceExt as _};

use crate::page;
use crate::slices::{Result, Side, spread};

#[derive(Clone)]
pub(crate) struct Site {
    address: SocketAddr,
    /// Those that no task uses at present.
    connections: Arc<Mutex<Vec<Connection>>>,
}

struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Site {
    /// What a server serves there.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self {
            address,
            connections: Arc::default(),
        }
    }

    /// Serves `app` in this process, on a port that is free, until the process ends.
    pub(crate) async fn serve(app: Router) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self::at(address))
    }

    /// Asks for the page once.
    pub(crate) async fn ask(&self) -> io::Result<()> {
        let mut connection = self.connection().await?;
        connection.ask().await?;
        self.connections.lock().await.push(connection);
        Ok(())
    }

    async fn connection(&self) -> io::Result<Connection> {
        if let Some(connection) = self.connections.lock().await.pop() {
            return Ok(connection);
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let answer = Vec::with_capacity(2 * page::LENGTH);
        Ok(Connection { stream, answer })
    }
}

impl Side for Site {
    /// Each task asks on a connection of its own, as soon as it has an answer.
    async fn slice(&self, tasks: usize, until: Instant) -> u64 {
        spread(tasks, |_| {
            let site = self.clone();
            async move {
                let mut connection = site.connection().await.expect("it listens");
                let mut done = 0;
                while Instant::now() < until {
                    connection.ask().await.expect("an answer");
                    done += 1;
                }
                site.connections.lock().await.push(connection);
                done
            }
        })
        .await
    }
}

impl Connection {
    async fn ask(&mut self) -> io::Result<()> {
        self.stream.write_all(page::REQUEST.as_bytes()).await?;
        self.answer.clear();
        loop {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some(head) = end_of_head(&self.answer) else {
                continue;
            };
            assert!(self.answer.starts_with(b"HTTP/1.1 200 "), "not a page");
            let body = &self.answer[head..];
            if body.len() >= page::LENGTH {
                assert_eq!(body, page::bytes(), "another page");
                return Ok(());
            }
        }
    }
}

fn end_of_head(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// Calls a service in this process, one request after the other, without HTTP, and reads the body
/// of each answer. Returns how many calls were made.
pub(crate) async fn called<S>(
    mut service: S,
    request: impl Fn() -> Request<Body>,
    status: StatusCode,
    until: Instant,
) -> u64
where
    S: Service<Request<Body>, Response: Answer, Error: std::fmt::Debug>,
{
    let mut done = 0;
    while Instant::now() < until {
        for _ in 0..AT_ONCE {
            let ready = service.ready().await.expect("ready");
            let response = ready.call(request()).await.expect("an answer");
            assert_eq!(response.read().await, status);
        }
        done += AT_ONCE;
    }
    done
}

/// A response of any of the services.
pub(crate) trait Answer {
    /// Reads the body to its end, and returns the status.
    async fn read(self) -> StatusCode;
}

impl<B> Answer for axum::http::Response<B>
where
    B: axum::body::HttpBody<Data = axum::body::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    async fn read(self) -> StatusCode {
        let status = self.status();
        let body = axum::body::to_bytes(Body::new(self.into_body()), usize::MAX).await;
        body.expect("a whole body");
        status
    }
}

/// How many calls are made between two looks at the clock.
const AT_ONCE: u64 = 20;
