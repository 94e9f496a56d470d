//! An engine in memory, called directly and through the interface of plugins.

use std::path::Path;
use std::sync::RwLock;

use divan::{Bencher, black_box};
use kvd_plugin_api::host::{self, Engine};
use kvd_plugin_api::{
    Backend, Caps, Contents, Feed, Flow, Mark, Op, OpenContext, Range, Result, View,
};

use super::{key, spread};

/// Keys in the engine.
const KEYS: u64 = 100_000;

/// The volatile engine of the README.
#[derive(Default)]
struct Mine(RwLock<Contents>);

impl Backend for Mine {
    const NAME: &'static str = "mine";
    const VERSION: &'static str = "1";
    const CAPS: Caps = Caps::VIEW;
    type View = Contents;

    fn open(_: &OpenContext<'_>) -> Result<Self> {
        Ok(Mine::default())
    }

    fn mark(&self) -> Result<Mark> {
        Ok(self.0.read().unwrap().mark().clone())
    }

    fn get(&self, key: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.0.read().unwrap().get(key, out)
    }

    fn scan(&self, range: Range<'_>, out: &mut dyn FnMut(&[u8], &[u8]) -> Flow) -> Result<()> {
        self.0.read().unwrap().scan(range, out)
    }

    fn write(&self, batch: &[Op<'_>], mark: &Mark) -> Result<()> {
        self.0.write().unwrap().write(batch, mark);
        Ok(())
    }

    fn sync(&self) -> Result<Mark> {
        Ok(Mark::default())
    }

    fn view(&self) -> Result<Contents> {
        Ok(self.0.read().unwrap().clone())
    }

    fn replace(&self, feed: &mut dyn Feed, mark: &Mark) -> Result<()> {
        *self.0.write().unwrap() = Contents::from_feed(feed, mark)?;
        Ok(())
    }
}

/// Both kinds of call, under one name.
enum Called {
    Directly(Mine),
    Bordered(Engine),
}

impl Called {
    fn of(how: &str) -> Self {
        let called = match how {
            "direct" => Called::Directly(Mine::default()),
            _ => Called::Bordered(host::open_linked::<Mine>(Path::new("."), &[]).expect("memory")),
        };
        let keys: Vec<String> = (0..KEYS).map(key).collect();
        let puts: Vec<Op<'_>> = keys
            .iter()
            .map(|key| Op::Put(key.as_bytes(), b"value"))
            .collect();
        called.write(&puts);
        called
    }

    fn get(&self, key: &[u8]) -> usize {
        let mut len = 0;
        let mut out = |value: &[u8]| len = value.len();
        match self {
            Called::Directly(engine) => engine.get(key, &mut out),
            Called::Bordered(engine) => engine.get(key, &mut out),
        }
        .expect("memory");
        len
    }

    fn write(&self, batch: &[Op<'_>]) {
        let mark = Mark::default();
        match self {
            Called::Directly(engine) => engine.write(batch, &mark),
            Called::Bordered(engine) => engine.write(batch, &mark),
        }
        .expect("memory");
    }
}

#[divan::bench(args = ["direct", "interface"])]
fn get(bencher: Bencher<'_, '_>, how: &str) {
    let called = Called::of(how);
    let keys: Vec<String> = (0..1000).map(|n| key(spread(n, KEYS))).collect();
    let mut turn = keys.iter().cycle();
    bencher.bench_local(|| {
        let key = turn.next().expect("it goes round");
        called.get(black_box(key.as_bytes()))
    });
}

#[divan::bench(args = ["direct", "interface"])]
fn write_a_batch_of_16(bencher: Bencher<'_, '_>, how: &str) {
    let called = Called::of(how);
    let keys: Vec<String> = (0..16).map(|n| key(spread(n, KEYS))).collect();
    let puts: Vec<Op<'_>> = keys
        .iter()
        .map(|key| Op::Put(key.as_bytes(), b"value"))
        .collect();
    bencher.bench_local(|| called.write(black_box(&puts)));
}
