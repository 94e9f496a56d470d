//! redb's errors in the host's terms.

use std::io::{self, ErrorKind as IoErrorKind};

use kvd_plugin_api::{Error, ErrorKind};
use redb::Error as Redb;

/// The host's error for one of redb's.
pub(crate) fn from_redb(error: impl Into<Redb>) -> Error {
    let error = error.into();
    let kind = match &error {
        Redb::Io(io) => return io_error(io),
        Redb::DatabaseAlreadyOpen | Redb::LockProtocolMismatch => ErrorKind::Locked,
        Redb::Corrupted(_) | Redb::RepairAborted => ErrorKind::Corruption,
        Redb::UpgradeRequired(_)
        | Redb::TableTypeMismatch { .. }
        | Redb::TableIsMultimap(_)
        | Redb::TableIsNotMultimap(_)
        | Redb::TypeDefinitionChanged { .. } => ErrorKind::Incompatible,
        // The tables are made with the file, in one transaction.
        Redb::TableDoesNotExist(_) => ErrorKind::Incompatible,
        Redb::ValueTooLarge(_) => ErrorKind::TooLarge,
        Redb::PreviousIo => ErrorKind::Io,
        Redb::DatabaseClosed => ErrorKind::Closed,
        _ => ErrorKind::Other,
    };
    Error::new(kind, text(&error))
}

fn io_error(error: &io::Error) -> Error {
    // What redb reports for a file that was cut short, or that is none of its own.
    if matches!(
        error.kind(),
        IoErrorKind::UnexpectedEof | IoErrorKind::InvalidData
    ) {
        return Error::new(
            ErrorKind::Corruption,
            format!("redb: damaged file: {error}"),
        );
    }
    let kind = Error::from(io::Error::from(error.kind())).kind();
    Error::new(kind, format!("redb: {error}"))
}

fn text(error: &Redb) -> String {
    let text = error.to_string();
    format!("redb: {}", text.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_told_from_other_failures() {
        let full = redb::StorageError::Io(io::ErrorKind::StorageFull.into());
        assert_eq!(from_redb(full).kind(), ErrorKind::NoSpace);
        let full = redb::StorageError::Io(io::Error::from_raw_os_error(28));
        assert_eq!(from_redb(full).kind(), ErrorKind::NoSpace);
        let other = redb::StorageError::Io(io::ErrorKind::PermissionDenied.into());
        assert_eq!(from_redb(other).kind(), ErrorKind::Io);
    }

    #[test]
    fn kinds_follow_what_the_host_must_decide() {
        let kind = |error: redb::DatabaseError| from_redb(error).kind();
        assert_eq!(
            kind(redb::DatabaseError::DatabaseAlreadyOpen),
            ErrorKind::Locked
        );
        assert_eq!(
            kind(redb::DatabaseError::UpgradeRequired(2)),
            ErrorKind::Incompatible
        );
        assert_eq!(
            kind(redb::DatabaseError::RepairAborted),
            ErrorKind::Corruption
        );
        let corrupted = redb::StorageError::Corrupted("page".to_owned());
        assert_eq!(from_redb(corrupted).kind(), ErrorKind::Corruption);
    }
}
