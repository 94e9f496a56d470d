//! The real network: TCP of the operating system, through tokio.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::doors::{Aside, BoxFuture, Detached, Io, Listener, Net, Stream};

/// How long accepting rests after it failed for want of descriptors or memory.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// TCP without Nagle's delay.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Net for Tcp {
    fn bind<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(addr).await?;
            let local = listener.local_addr()?.to_string();
            Ok(Box::new(Bound { listener, local }) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Stream)
        })
    }
}

struct Bound {
    listener: TcpListener,
    local: String,
}

/// Whether a failed accept says something of one connection only, not of the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

impl Listener for Bound {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, String)>> {
        Box::pin(async move {
            loop {
                match self.listener.accept().await {
                    Ok((stream, peer)) => {
                        // A connection that is gone already cannot take options: it is no news.
                        if stream.set_nodelay(true).is_ok() {
                            let stream = Accepted::new(stream);
                            return Ok((Box::new(stream) as Stream, peer.to_string()));
                        }
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        // The caller may try again at once: it must not spin until descriptors
                        // are free again.
                        tokio::time::sleep(ACCEPT_REST).await;
                        return Err(error);
                    }
                }
            }
        })
    }

    fn local_addr(&self) -> String {
        self.local.clone()
    }
}

/// A connection that was accepted, whose writing side others may hold too.
struct Accepted {
    read: OwnedReadHalf,
    write: Arc<OwnedWriteHalf>,
}

impl Accepted {
    fn new(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        let write = Arc::new(write);
        Accepted { read, write }
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&OwnedWriteHalf) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(&self.write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
            // Ready again, or with a waker for when it is.
            std::task::ready!((*self.write).as_ref().poll_write_ready(cx))?;
        }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |write| write.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |write| write.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream: &TcpStream = (*self.write).as_ref();
        Poll::Ready(
            match rustix::net::shutdown(stream, rustix::net::Shutdown::Write) {
                // The other side was first.
                Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
                Err(error) => Err(error.into()),
            },
        )
    }
}

impl Io for Accepted {
    fn aside(&self) -> Option<Arc<dyn Aside>> {
        Some(Arc::new(Beside(self.write.clone())))
    }

    fn detach(self: Box<Self>) -> Result<Detached, Stream> {
        let Accepted { read, write } = *self;
        let write = match Arc::try_unwrap(write) {
            Ok(write) => write,
            Err(write) => return Err(Box::new(Accepted { read, write })),
        };
        let stream = read.reunite(write).expect("both are of one connection");
        Ok(Box::new(move || {
            let stream = TcpStream::from_std(stream.into_std()?)?;
            Ok(Box::new(Accepted::new(stream)) as Stream)
        }))
    }
}

struct Beside(Arc<OwnedWriteHalf>);

impl Aside for Beside {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_cross_a_connection_on_a_free_port() {
        let mut listener = Tcp.bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr();
        assert!(!addr.ends_with(":0"));
        let (client, accepted) = tokio::join!(Tcp.connect(&addr), listener.accept());
        let (mut client, (mut server, peer)) = (client.unwrap(), accepted.unwrap());
        assert!(peer.starts_with("127.0.0.1:"));
        client.write_all(b"over").await.unwrap();
        let mut got = [0; 4];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"over");
    }

    #[tokio::test]
    async fn connecting_to_a_closed_port_fails() {
        let addr = Tcp.bind("127.0.0.1:0").await.unwrap().local_addr();
        assert!(Tcp.connect(&addr).await.is_err());
    }
}
