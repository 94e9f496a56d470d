//! What a plugin logs goes to the host: a library has its own copy of `log` and of the panic hook.

use std::sync::OnceLock;

use abi_stable::std_types::RStr;

type Sink = extern "C" fn(u8, RStr<'_>, RStr<'_>);

static SINK: OnceLock<Sink> = OnceLock::new();

struct Forward;

static FORWARD: Forward = Forward;

impl log::Log for Forward {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
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

/// Sends this library's log records and panics to `sink`; the first call decides.
pub(crate) fn forward_to(sink: Sink) {
    if SINK.set(sink).is_err() {
        return;
    }
    // A library that has set its own logger keeps it.
    if log::set_logger(&FORWARD).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    std::panic::set_hook(Box::new(move |info| {
        let message = format!("panic in the plugin: {info}");
        sink(
            log::Level::Error as u8,
            "plugin".into(),
            message.as_str().into(),
        );
    }));
}
