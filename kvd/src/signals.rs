//! The signals that a process hears.

use kvd::exit;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Failed;

/// A signal, heard from when this is called. Before, it ends the process at once, or does nothing
/// where whoever started that ignores it, as a shell does for what runs in the background: so it is
/// to be called before anybody can know that there is something to stop.
pub(crate) fn heard(kind: SignalKind) -> Result<Signal, Failed> {
    signal(kind).map_err(|error| Failed::new(exit::PANIC, format!("signals: {error}")))
}

/// The signals that ask a process to stop: SIGTERM, and SIGINT as by Ctrl-C.
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// See [`heard`].
    pub(crate) fn new() -> Result<Self, Failed> {
        Ok(StopSignals {
            terminate: heard(SignalKind::terminate())?,
            interrupt: heard(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
