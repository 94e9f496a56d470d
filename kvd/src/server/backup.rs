//! BACKUP: a copy of all data for one connection, fetched in pieces.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Service;
use super::connection::{Connection, internal};
use crate::command::effect::Backup;
use crate::doors;
use crate::raft::spool::Spool;
use crate::resp::Reply;

/// One answer holds at most so much of a copy.
const PIECE_BYTES: usize = 1 << 20;

/// The copy of one connection; its file goes with it.
pub(super) struct Copy {
    spool: Arc<Spool>,
    _only: Only,
}

/// There is one copy at a time: each takes as much of the disk as the data.
struct Only(Arc<AtomicBool>);

impl Only {
    fn take(taken: &Arc<AtomicBool>) -> Option<Self> {
        (!taken.swap(true, Ordering::AcqRel)).then(|| Only(taken.clone()))
    }
}

impl Drop for Only {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<S: Service> Connection<S> {
    pub(super) async fn backup(&mut self, what: Backup) -> Option<Reply> {
        match what {
            Backup::Open => self.open_copy().await,
            Backup::Read(offset) => Some(self.read_copy(offset).await),
            Backup::Close => {
                self.copy = None;
                Some(Reply::Ok)
            }
        }
    }

    async fn open_copy(&mut self) -> Option<Reply> {
        self.copy = None;
        let Some(only) = Only::take(&self.shared.copying) else {
            return Some(Reply::error(
                "ERR another connection has a backup open; there is one at a time",
            ));
        };
        let service = self.shared.service.clone();
        let (index, spool) = match self.while_connected(service.backup()).await? {
            Ok(taken) => taken,
            Err(reply) => return Some(reply),
        };
        let bytes = spool.bytes;
        self.copy = Some(Copy {
            spool: Arc::new(spool),
            _only: only,
        });
        Some(Reply::Array(vec![
            Reply::Int(index as i64),
            Reply::Int(bytes as i64),
        ]))
    }

    async fn read_copy(&self, offset: u64) -> Reply {
        let Some(copy) = &self.copy else {
            return Reply::error("ERR this connection has no backup open");
        };
        let spool = copy.spool.clone();
        let piece = move || read_at(&spool, offset);
        match doors::blocking(&*self.shared.doors.workers, piece).await {
            Some(Ok(piece)) => Reply::bulk(piece),
            Some(Err(error)) => {
                tracing::error!(%error, "a backup's file could not be read");
                internal()
            }
            None => internal(),
        }
    }
}

fn read_at(spool: &Spool, offset: u64) -> io::Result<Vec<u8>> {
    let left = spool.bytes.saturating_sub(offset);
    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
    File::open(&spool.path)?.read_exact_at(&mut piece, offset)?;
    Ok(piece)
}
