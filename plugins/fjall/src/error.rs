//! The tree's errors in the host's terms.

use std::io;

use kvd_plugin_api::{Error, ErrorKind};
use lsm_tree::Error as Lsm;

/// The host's error for one of the tree's.
pub(crate) fn from_lsm(error: Lsm) -> Error {
    let kind = match &error {
        // What it reports for a file that was cut short.
        Lsm::Io(io) if io.kind() == io::ErrorKind::UnexpectedEof => ErrorKind::Corruption,
        Lsm::Io(io) => Error::from(io::Error::from(io.kind())).kind(),
        Lsm::InvalidVersion(_) => ErrorKind::Incompatible,
        // All others are said of contents.
        _ => ErrorKind::Corruption,
    };
    Error::new(kind, format!("fjall: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_what_the_host_must_decide() {
        let kind = |error| from_lsm(error).kind();
        let io = |kind: io::ErrorKind| Lsm::Io(kind.into());
        assert_eq!(kind(io(io::ErrorKind::StorageFull)), ErrorKind::NoSpace);
        assert_eq!(kind(io(io::ErrorKind::PermissionDenied)), ErrorKind::Io);
        assert_eq!(
            kind(io(io::ErrorKind::UnexpectedEof)),
            ErrorKind::Corruption
        );
        assert_eq!(kind(Lsm::Unrecoverable), ErrorKind::Corruption);
        assert_eq!(kind(Lsm::InvalidVersion(2)), ErrorKind::Incompatible);
    }
}
