//! What a plugin logs goes to the host: a library has its own copy of `log` and of the panic hook.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use abi_stable::std_types::RStr;
use log::{Level, LevelFilter};

type Sink = extern "C" fn(u8, RStr<'_>, RStr<'_>);

static SINK: OnceLock<Sink> = OnceLock::new();

/// The library logs through [`Forward`]; false where it has set a logger of its own.
static FORWARDS: AtomicBool = AtomicBool::new(false);

struct Forward;

static FORWARD: Forward = Forward;

impl log::Log for Forward {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if let Some(sink) = SINK.get() {
            let message = record.args().to_string();
            sink(
                record.level() as u8,
                record.target().into(),
                message.as_str().into(),
            );
        }
    }

    fn flush(&self) {}
}

/// Sends this library's log records and panics to `sink`, up to `level`.
///
/// The first call decides on the sink, the latest one on the level.
pub(crate) fn forward_to(sink: Sink, level: u8) {
    if SINK.set(sink).is_ok() {
        // A library that has set its own logger keeps it.
        FORWARDS.store(log::set_logger(&FORWARD).is_ok(), Ordering::Relaxed);
        std::panic::set_hook(Box::new(move |info| {
            let message = format!("panic in the plugin: {info}");
            sink(Level::Error as u8, "plugin".into(), message.as_str().into());
        }));
    }
    if FORWARDS.load(Ordering::Relaxed) {
        log::set_max_level(filter(level));
    }
}

fn filter(level: u8) -> LevelFilter {
    match level {
        0 => LevelFilter::Off,
        1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}
