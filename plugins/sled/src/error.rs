//! sled's errors in the host's terms.

use std::io;

use kvd_plugin_api::{Error, ErrorKind};

/// The host's error for one of sled's.
pub(crate) fn from_sled(error: sled::Error) -> Error {
    let kind = match &error {
        sled::Error::Io(io) if is_lock_conflict(io) => ErrorKind::Locked,
        sled::Error::Io(io) => Error::from(io::Error::from(io.kind())).kind(),
        sled::Error::Corruption { .. } => ErrorKind::Corruption,
        // What it says about a directory of another version.
        sled::Error::Unsupported(_) => ErrorKind::Incompatible,
        _ => ErrorKind::Other,
    };
    Error::new(kind, format!("sled: {error}"))
}

/// sled has no kind of its own for this.
fn is_lock_conflict(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Other && error.to_string().contains("could not acquire lock")
}
