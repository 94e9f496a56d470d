//! MONITOR: what clients ask for, as lines for those who watch.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use tokio::sync::broadcast;

/// Lines that may wait for a monitor; one that is further behind is closed.
const LINES_MAX: usize = 4096;

/// Bytes of an argument that are shown.
const ARG_BYTES_MAX: usize = 1024;

/// Where lines come from.
pub(super) struct Monitors {
    lines: broadcast::Sender<String>,
    /// Looked at for every command, so without a lock.
    count: AtomicUsize,
}

impl Default for Monitors {
    fn default() -> Self {
        Monitors {
            lines: broadcast::Sender::new(LINES_MAX),
            count: AtomicUsize::new(0),
        }
    }
}

impl Monitors {
    pub(super) fn any(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<String> {
        self.count.fetch_add(1, Relaxed);
        self.lines.subscribe()
    }

    /// A subscriber has gone.
    pub(super) fn left(&self) {
        self.count.fetch_sub(1, Relaxed);
    }

    pub(super) fn show(&self, at_us: u64, client: &str, args: &[Bytes]) {
        // Nobody may watch any more.
        let _ = self.lines.send(line(at_us, client, args));
    }
}

fn line(at_us: u64, client: &str, args: &[Bytes]) -> String {
    let (s, us) = (at_us / 1_000_000, at_us % 1_000_000);
    let mut line = format!("{s}.{us:06} [0 {client}]");
    for arg in args {
        line.push_str(" \"");
        let shown = &arg[..arg.len().min(ARG_BYTES_MAX)];
        for byte in shown {
            match byte {
                b'\\' | b'"' => line.extend(['\\', char::from(*byte)]),
                b'\n' => line.push_str("\\n"),
                b'\r' => line.push_str("\\r"),
                b'\t' => line.push_str("\\t"),
                0x07 => line.push_str("\\a"),
                0x08 => line.push_str("\\b"),
                b' '..=b'~' => line.push(char::from(*byte)),
                _ => line.push_str(&format!("\\x{byte:02x}")),
            }
        }
        if shown.len() < arg.len() {
            let more = arg.len() - shown.len();
            line.push_str(&format!("... ({more} more bytes)"));
        }
        line.push('"');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_shown_as_redis_shows_them() {
        let args = [&b"set"[..], b"a \"b\"\\", b"\r\n\t\x07\x08\0\xff"].map(Bytes::from_static);
        assert_eq!(
            line(1_339_518_083_107_412, "127.0.0.1:60866", &args),
            "1339518083.107412 [0 127.0.0.1:60866] \"set\" \"a \\\"b\\\"\\\\\" \
             \"\\r\\n\\t\\a\\b\\x00\\xff\""
        );
    }
}
