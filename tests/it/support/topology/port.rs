//! Ports that nobody else takes.
//!
//! Invariant: while a [`Port`] lives, no other one of this or another test process has its number.
//! The claim is a UDP socket on the same number, which the servers have no use for and which the
//! operating system gives back when the process ends. So a server may leave its port and come back.

use std::net::{TcpListener, UdpSocket};

/// A port on the loopback interface, below those that outgoing connections get.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: UdpSocket,
}

impl Port {
    /// One that is free now. A foreign program may still take it before the server does.
    pub fn free() -> Self {
        for _ in 0..1000 {
            let number = rand::random_range(10_000..32_000);
            let Ok(claim) = UdpSocket::bind(("127.0.0.1", number)) else {
                continue;
            };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self {
                    number,
                    _claim: claim,
                };
            }
        }
        panic!("no port is free");
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}
