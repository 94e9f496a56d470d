//! Keys that expire, each set by one client alone.

use std::collections::BTreeSet;

use kvd::outcome::Fate;
use kvd::resp::Reply;

/// What a client knows of its key: what has expired does not come back, on whichever node and under
/// whichever leader and clock it is looked for.
pub struct Lease {
    key: String,
    /// The value that was set last, if that is known.
    value: Option<String>,
    /// Values of which nobody knows whether they were set, or will be.
    unknown: BTreeSet<String>,
    gone: bool,
}

impl Lease {
    /// Nothing was set yet.
    pub fn new(id: usize) -> Self {
        Lease {
            key: format!("lease:{id}"),
            value: None,
            unknown: BTreeSet::new(),
            gone: false,
        }
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A SET of a new value has ended.
    pub fn set(&mut self, value: String, fate: Option<Fate>) {
        match fate {
            None => (self.value, self.gone) = (Some(value), false),
            Some(Fate::Unknown) => {
                self.unknown.insert(value);
            }
            Some(Fate::NotDone | Fate::Refused) => {}
        }
    }

    /// A GET has ended.
    ///
    /// # Errors
    ///
    /// What it saw must not be there.
    pub fn seen(&mut self, reply: Option<&Reply>) -> Result<(), String> {
        match reply {
            Some(Reply::Null) => self.gone = true,
            Some(Reply::Bulk(found)) => {
                let found = String::from_utf8_lossy(found).into_owned();
                if self.unknown.remove(&found) {
                    (self.value, self.gone) = (Some(found), false);
                } else if self.gone || self.value.as_ref() != Some(&found) {
                    let (key, value, gone) = (&self.key, &self.value, self.gone);
                    return Err(format!(
                        "{key} was {found} after it was set to {value:?}, seen gone: {gone}"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
