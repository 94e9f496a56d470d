//! Accepts clients.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep, timeout};

use super::connection::Connection;
use super::{About, ClientEntry, Server, Service};
use crate::doors::{self, Listener, Stream};

/// How long accepting pauses after an error, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a client that is refused has to take its answer.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

const DENIED: &[u8] = b"-DENIED Redis is running in protected mode because protected mode is \
enabled and no password is set for the default user. In this mode connections are only accepted \
from the loopback interface. If you want to connect from external computers to Redis you may adopt \
one of the following solutions: 1) Just disable protected mode sending the command 'CONFIG SET \
protected-mode no' from the loopback interface by connecting to Redis from the same host the \
server is running, however MAKE SURE Redis is not publicly accessible from internet if you do so. \
Use CONFIG REWRITE to make this change permanent. 2) Alternatively you can just disable the \
protected mode by editing the Redis configuration file, and setting the protected mode option to \
'no', and then restarting the server. 3) If you started the server manually just for testing, \
restart it with the '--protected-mode no' option. 4) Setup a an authentication password for the \
default user. NOTE: You only need to do one of the above things in order for the server to start \
accepting connections from the outside.\r\n";

/// Serves clients of one listener until the server stops; returns when no more are accepted.
pub async fn serve<S: Service>(server: Server<S>, mut listener: Box<dyn Listener>) {
    let mut stopping = server.shared.stopping.subscribe();
    let local_addr = listener.local_addr();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, addr)) => begin(&server, stream, addr, &local_addr),
            Err(error) => {
                tracing::warn!(%error, "a client could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an address, `host:port`, is of this machine. What is no IP address comes from no
/// network.
pub(super) fn is_loopback(addr: &str) -> bool {
    addr.parse::<std::net::SocketAddr>()
        .map_or(true, |addr| addr.ip().to_canonical().is_loopback())
}

pub(super) fn begin<S: Service>(
    server: &Server<S>,
    mut stream: Stream,
    addr: String,
    local_addr: &str,
) {
    let shared = &server.shared;
    let settings = shared.settings();
    let mut refusal: Option<&'static [u8]> = None;
    let mut clients = shared.clients.lock().expect("no panic while held");
    if clients.len() >= settings.clients_max {
        refusal = Some(b"-ERR max number of clients reached\r\n");
    } else if settings.protected_mode && settings.password.is_none() && !is_loopback(&addr) {
        refusal = Some(DENIED);
    }
    if let Some(text) = refusal {
        drop(clients);
        shared.metrics.rejected.fetch_add(1, Relaxed);
        doors::spawn(async move {
            let _ = timeout(REFUSAL_TIME, async {
                stream.write_all(text).await?;
                stream.shutdown().await
            })
            .await;
        });
        return;
    }
    shared.metrics.connections.fetch_add(1, Relaxed);
    let now = Instant::now();
    let entry = Arc::new(ClientEntry {
        id: shared.next_id.fetch_add(1, Relaxed),
        addr,
        local_addr: local_addr.to_owned(),
        since: now,
        about: Mutex::new(About {
            name: String::new(),
            library: String::new(),
            library_version: String::new(),
            last: now,
            command: "NULL",
            protocol: 2,
            queued: None,
            readonly: false,
        }),
        queued_bytes: AtomicUsize::new(0),
        killed: AtomicBool::new(false),
        called: AtomicWaker::new(),
    });
    clients.insert(entry.id, entry.clone());
    drop(clients);
    let connection = Connection::new(shared.clone(), stream, entry);
    doors::spawn(connection.run());
}
