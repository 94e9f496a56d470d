//! As much of RESP2 as it takes to ask a server something and to fill it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How long an answer may take: JOIN waits until the new member is level.
const PATIENCE: Duration = Duration::from_secs(120);

/// Keys that are set between two looks at the replies.
const PIPELINE: u64 = 1000;

/// No reply that is asked for here is longer.
const BULK_BYTES_MAX: usize = 1 << 20;

/// A connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects to a port of this machine.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub(crate) fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a command and returns the text of its answer; none for a null.
    ///
    /// # Errors
    ///
    /// The answer is an error or a list, or there is none.
    pub(crate) fn call(&mut self, args: &[&str]) -> Result<Option<String>> {
        let mut request = Vec::new();
        put(&mut request, args.iter().map(|arg| arg.as_bytes()));
        self.stream.get_mut().write_all(&request)?;
        self.answer().with_context(|| args.join(" "))
    }

    /// Sets the keys of these numbers, many at a time.
    ///
    /// # Errors
    ///
    /// One of them was not set.
    pub(crate) fn fill(&mut self, numbers: std::ops::Range<u64>, value: &[u8]) -> Result<()> {
        let mut at = numbers.start;
        let mut request = Vec::new();
        while at < numbers.end {
            let end = numbers.end.min(at + PIPELINE);
            request.clear();
            for number in at..end {
                put(&mut request, [&b"SET"[..], key(number).as_bytes(), value]);
            }
            self.stream.get_mut().write_all(&request)?;
            for _ in at..end {
                self.answer().context("SET")?;
            }
            at = end;
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        let line = line.trim_end();
        let (kind, text) = line.split_at_checked(1).context("an empty line")?;
        match kind {
            "+" | ":" => Ok(Some(text.to_owned())),
            "-" => bail!("{text}"),
            "$" if text == "-1" => Ok(None),
            "$" => {
                let bytes: usize = text.parse()?;
                if bytes > BULK_BYTES_MAX {
                    bail!("an answer of {bytes} bytes");
                }
                let mut bulk = vec![0; bytes + 2];
                self.stream.read_exact(&mut bulk)?;
                bulk.truncate(bytes);
                Ok(Some(String::from_utf8(bulk)?))
            }
            _ => bail!("an answer of another kind: {line}"),
        }
    }
}

/// The key of a number, as redis-benchmark has it.
pub(crate) fn key(number: u64) -> String {
    format!("key:{number:012}")
}

/// Appends a command.
pub(crate) fn put<'a>(
    out: &mut Vec<u8>,
    args: impl IntoIterator<Item = &'a [u8], IntoIter: ExactSizeIterator>,
) {
    let args = args.into_iter();
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server that takes so many bytes and answers them.
    fn answering(bytes: usize, answer: &'static str) -> (Client, thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; bytes];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            request
        });
        (Client::connect(port).unwrap(), server)
    }

    #[test]
    fn answers_are_read_whole() {
        let request = "*1\r\n$4\r\nPING\r\n";
        for (answer, expected) in [
            ("+PONG\r\n", Some("PONG")),
            (":12\r\n", Some("12")),
            ("$6\r\na:1\r\nb\r\n", Some("a:1\r\nb")),
            ("$-1\r\n", None),
        ] {
            let (mut client, server) = answering(request.len(), answer);
            assert_eq!(client.call(&["PING"]).unwrap().as_deref(), expected);
            assert_eq!(server.join().unwrap(), request.as_bytes());
        }
        for (answer, why) in [
            ("-ERR no\r\n", "ERR no"),
            ("*0\r\n", "another kind"),
            ("", "closed"),
        ] {
            let (mut client, _server) = answering(request.len(), answer);
            let error = format!("{:#}", client.call(&["PING"]).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn filling_sets_the_keys_that_redis_benchmark_asks_for() {
        let expected = "*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000007\r\n$1\r\nv\r\n\
                        *3\r\n$3\r\nSET\r\n$16\r\nkey:000000000008\r\n$1\r\nv\r\n";
        let (mut client, server) = answering(expected.len(), "+OK\r\n+OK\r\n");
        client.fill(7..9, b"v").unwrap();
        assert_eq!(server.join().unwrap(), expected.as_bytes());
        let (mut client, _server) = answering(expected.len(), "+OK\r\n-OOM\r\n");
        assert!(client.fill(7..9, b"v").is_err());
    }
}
