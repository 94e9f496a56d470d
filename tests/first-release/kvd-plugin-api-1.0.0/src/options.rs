//! Options: from `name=value` texts to checked values.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Error, ErrorKind, OptionKind, OptionSpec, Options, Result};

impl Options {
    /// Checks `given` against `specs` and fills in the defaults.
    ///
    /// # Errors
    ///
    /// `InvalidOption` for a name that `specs` does not have, one that is given twice, or a value
    /// that is not of its kind. Words of an [`OptionKind::Enum`] are checked by the engine.
    pub fn parse<'a>(
        specs: &[OptionSpec],
        given: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Options> {
        let mut values = BTreeMap::new();
        for (name, value) in given {
            let Some(spec) = specs.iter().find(|spec| spec.name == name) else {
                let known: Vec<_> = specs.iter().map(|spec| spec.name).collect();
                let known = known.join(", ");
                return Err(invalid(format!("unknown option '{name}' (known: {known})")));
            };
            check(spec, value)?;
            if values.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(invalid(format!("option '{name}' is given twice")));
            }
        }
        for spec in specs {
            if !values.contains_key(spec.name) {
                check(spec, spec.default)?;
                values.insert(spec.name.to_owned(), spec.default.to_owned());
            }
        }
        Ok(Options { values })
    }

    /// The text of an option.
    ///
    /// # Panics
    ///
    /// As all of these: when the specification has no option of this name and kind.
    pub fn str(&self, name: &str) -> &str {
        match self.values.get(name) {
            Some(value) => value,
            None => panic!("option '{name}' is not in the engine's specification"),
        }
    }

    /// A number of bytes.
    pub fn size(&self, name: &str) -> u64 {
        self.value(name, parse_size)
    }

    /// A span of time.
    pub fn duration(&self, name: &str) -> Duration {
        self.value(name, parse_duration)
    }

    /// Whether it is switched on.
    pub fn bool(&self, name: &str) -> bool {
        self.value(name, parse_bool)
    }

    /// A non-negative whole number.
    pub fn int(&self, name: &str) -> u64 {
        self.value(name, parse_int)
    }

    fn value<T>(&self, name: &str, parse: impl Fn(&str) -> Option<T>) -> T {
        match parse(self.str(name)) {
            Some(value) => value,
            None => panic!("option '{name}' is of another kind in the engine's specification"),
        }
    }
}

fn check(spec: &OptionSpec, value: &str) -> Result<()> {
    let (is_valid, expected) = match spec.kind {
        OptionKind::Size => (parse_size(value).is_some(), "a size such as 64MiB"),
        OptionKind::Duration => (parse_duration(value).is_some(), "a duration such as 250ms"),
        OptionKind::Bool => (parse_bool(value).is_some(), "yes or no"),
        OptionKind::Int => (parse_int(value).is_some(), "a whole number"),
        OptionKind::Enum => (!value.is_empty(), "a word"),
        OptionKind::String => (true, "text"),
    };
    if is_valid {
        return Ok(());
    }
    Err(invalid(format!(
        "option '{}' is '{value}', expected {expected}",
        spec.name
    )))
}

fn parse_int(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    parse_int(number)?.checked_mul(factor)
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text);
    let ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    parse_int(number)?
        .checked_mul(ms)
        .map(Duration::from_millis)
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOption, message)
}
