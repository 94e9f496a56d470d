//! LMDB's errors in the host's terms.

use std::io;

use heed::MdbError;
use kvd_plugin_api::{Error, ErrorKind};

/// The host's error for one of LMDB's.
pub(crate) fn from_lmdb(error: heed::Error) -> Error {
    let kind = match &error {
        heed::Error::Io(io) => io_kind(io),
        heed::Error::Mdb(MdbError::Other(code)) => io_kind(&io::Error::from_raw_os_error(*code)),
        heed::Error::Mdb(MdbError::MapFull) => ErrorKind::NoSpace,
        heed::Error::Mdb(MdbError::BadValSize) => ErrorKind::TooLarge,
        heed::Error::Mdb(MdbError::VersionMismatch | MdbError::Incompatible) => {
            ErrorKind::Incompatible
        }
        heed::Error::Mdb(
            MdbError::Corrupted | MdbError::PageNotFound | MdbError::Panic | MdbError::Invalid,
        ) => ErrorKind::Corruption,
        // A view of an engine that was closed still holds it.
        heed::Error::EnvAlreadyOpened => ErrorKind::Locked,
        _ => ErrorKind::Other,
    };
    Error::new(kind, format!("lmdb: {error}"))
}

fn io_kind(error: &io::Error) -> ErrorKind {
    Error::from(io::Error::from(error.kind())).kind()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_what_the_host_must_decide() {
        let kind = |error: MdbError| from_lmdb(heed::Error::Mdb(error)).kind();
        assert_eq!(kind(MdbError::Other(28)), ErrorKind::NoSpace);
        assert_eq!(kind(MdbError::Other(5)), ErrorKind::Io);
        assert_eq!(kind(MdbError::MapFull), ErrorKind::NoSpace);
        assert_eq!(kind(MdbError::Corrupted), ErrorKind::Corruption);
        assert_eq!(kind(MdbError::VersionMismatch), ErrorKind::Incompatible);
        assert_eq!(kind(MdbError::BadValSize), ErrorKind::TooLarge);
        assert_eq!(
            from_lmdb(heed::Error::EnvAlreadyOpened).kind(),
            ErrorKind::Locked
        );
    }
}
