//! A client of a running node, for commands that talk to one.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use kvd::resp::{Reply, ReplyDecoder};

/// How long a node may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    decoder: ReplyDecoder,
}

impl Client {
    /// Connects; an answer may take `patience`.
    pub(crate) fn connect(addr: &str, patience: Duration) -> io::Result<Self> {
        let mut last = None;
        for address in addr.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_TIME) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(patience))?;
                    return Ok(Client {
                        stream,
                        decoder: ReplyDecoder::new(),
                    });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    }

    /// Sends one command and waits for its answer.
    pub(crate) fn call(&mut self, args: &[&str]) -> io::Result<Reply> {
        let mut request = format!("*{}\r\n", args.len());
        for arg in args {
            request += &format!("${}\r\n{arg}\r\n", arg.len());
        }
        self.stream.write_all(request.as_bytes())?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(reply) = self.decoder.next().map_err(io::Error::other)? {
                return Ok(reply);
            }
            let count = self.stream.read(&mut buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.decoder.feed(&buffer[..count]);
        }
    }
}
