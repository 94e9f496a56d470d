//! An engine that is right as it stands, durable by writing everything anew in each sync, and
//! misbehaves as its option says: `panic in write`, `abort in sync`, `block in get`, `lie in
//! sync`, `delay in sync`, `refuse in write`.

use std::fs;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use kvd_plugin_api::{
    Backend, Caps, Contents, Error, ErrorKind, Feed, Flow, GenDir, Mark, Op, OpenContext, OptionKind, OptionSpec,
    Range, Result, View as _,
};

pub struct Engine {
    contents: RwLock<Contents>,
    dir: Mutex<GenDir>,
    fault: String,
}

kvd_plugin_api::export_backend!(Engine);

fn misbehave(fault: &str, call: &str) {
    let Some(what) = fault
        .strip_suffix(call)
        .and_then(|what| what.strip_suffix(" in "))
    else {
        return;
    };
    match what {
        "panic" => panic!("as it was told"),
        "abort" => std::process::abort(),
        "block" => loop {
            std::thread::park();
        },
        _ => {}
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<'a>(from: &mut &'a [u8]) -> &'a [u8] {
    let (len, rest) = from.split_at(8);
    let len = u64::from_le_bytes(len.try_into().unwrap()) as usize;
    let (bytes, rest) = rest.split_at(len);
    *from = rest;
    bytes
}

/// The entries of a saved state.
struct Saved<'a>(&'a [u8]);

impl Feed for Saved<'_> {
    fn next(&mut self, out: &mut dyn FnMut(&[u8], &[u8])) -> Result<bool> {
        if self.0.is_empty() {
            return Ok(false);
        }
        let (key, value) = (take(&mut self.0), take(&mut self.0));
        out(key, value);
        Ok(true)
    }
}

impl Engine {
    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self) -> Result<Mark> {
        let contents = self.contents().clone();
        let mark = contents.mark().clone();
        let mut bytes = Vec::new();
        put(&mut bytes, &mark.index.to_le_bytes());
        put(&mut bytes, &mark.data);
        let all = Range {
            from: b"",
            to: None,
            reverse: false,
        };
        contents.scan(all, &mut |key, value| {
            put(&mut bytes, key);
            put(&mut bytes, value);
            Flow::Continue
        })?;
        let mut dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner);
        let next = dir.prepare()?;
        let mut file = fs::File::create(next.path())?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        dir.switch(&next)?;
        dir.remove_stale()?;
        Ok(mark)
    }
}

/// One that delays has written everything when it is dropped in order.
impl Drop for Engine {
    fn drop(&mut self) {
        misbehave(&self.fault, "drop");
        if self.fault == "delay in sync" {
            drop(self.save());
        }
    }
}

impl Backend for Engine {
    const NAME: &'static str = "rogue";
    const VERSION: &'static str = "6.6.6";
    const CAPS: Caps = Caps::VIEW.with(Caps::FAST_READ).with(Caps::DURABLE);
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec {
        name: "fault",
        kind: OptionKind::String,
        default: "",
        help: "what goes wrong, and where",
    }];
    type View = Contents;

    fn open(cx: &OpenContext<'_>) -> Result<Self> {
        let fault = cx.options.str("fault").to_owned();
        misbehave(&fault, "open");
        let dir = GenDir::open(cx.dir, "kvd-rogue 1")?;
        let contents = match dir.current() {
            None => Contents::default(),
            Some(saved) => {
                let bytes = fs::read(saved.path())?;
                let mut rest = bytes.as_slice();
                let index = u64::from_le_bytes(take(&mut rest).try_into().unwrap());
                let data = take(&mut rest).to_vec();
                Contents::from_feed(&mut Saved(rest), &Mark { index, data })?
            }
        };
        Ok(Engine {
            contents: RwLock::new(contents),
            dir: Mutex::new(dir),
            fault,
        })
    }

    fn mark(&self) -> Result<Mark> {
        Ok(self.contents().mark().clone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        misbehave(&self.fault, "get");
        self.contents().get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.contents().scan(range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        misbehave(&self.fault, "write");
        let is_large = |op: &Op<'_>| matches!(op, Op::Put(_, value) if value.len() > 65_536);
        if self.fault == "refuse in write" && batch.iter().any(is_large) {
            return Err(Error::new(ErrorKind::TooLarge, "64 KiB are enough"));
        }
        let mut contents = self
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        contents.write(batch, mark);
        Ok(())
    }

    fn sync(&self) -> Result<Mark> {
        misbehave(&self.fault, "sync");
        if ["lie in sync", "delay in sync"].contains(&self.fault.as_str()) {
            return self.mark();
        }
        self.save()
    }

    fn view(&self) -> Result<Contents> {
        Ok(self.contents().clone())
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        let contents = Contents::from_feed(feed, mark)?;
        *self
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner) = contents;
        self.save().map(drop)
    }
}
