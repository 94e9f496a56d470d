//! Ports that nobody uses.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Below it are the ports of well-known services.
const FIRST: u16 = 10_000;

/// Behind the last one that outgoing connections are not given, where Linux is as it comes.
const END: u16 = 32_768;

/// A port that nobody uses, and that no outgoing connection will be given.
pub(super) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let room = END - FIRST;
    // Two runs at the same time begin at different places.
    let offset = std::process::id().wrapping_mul(7919) % u32::from(room);
    for _ in 0..room {
        let n = u32::from(NEXT.fetch_add(1, Ordering::Relaxed) % room);
        let port = FIRST + ((offset + n) % u32::from(room)) as u16;
        let taken = |host: &str| {
            // A machine without IPv6 has nobody who listens there.
            TcpListener::bind((host, port))
                .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        };
        if !taken("127.0.0.1") && !taken("::1") {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_not_given() {
        let port = free_port().unwrap();
        assert!((FIRST..END).contains(&port));
        let _held = TcpListener::bind(("127.0.0.1", port)).unwrap();
        for _ in 0..100 {
            assert_ne!(free_port().unwrap(), port);
        }
    }
}
