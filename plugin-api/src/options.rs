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

    /// `given`, as it crosses the interface in one piece: for each text its length, in four bytes of
    /// little endian, and its bytes.
    #[cfg(feature = "host")]
    pub(crate) fn pack<'a>(given: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
        let mut packed = Vec::new();
        for text in given.into_iter().flat_map(|(name, value)| [name, value]) {
            packed.extend_from_slice(&(text.len() as u32).to_le_bytes());
            packed.extend_from_slice(text.as_bytes());
        }
        packed
    }

    /// What [`pack`](Self::pack) has put together.
    pub(crate) fn unpack(packed: &[u8]) -> Result<Vec<(&str, &str)>> {
        fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
            let (len, behind) = rest.split_first_chunk::<4>()?;
            let (text, behind) = behind.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            *rest = behind;
            std::str::from_utf8(text).ok()
        }
        let mut rest = packed;
        let mut pairs = Vec::new();
        while !rest.is_empty() {
            match (text(&mut rest), text(&mut rest)) {
                (Some(name), Some(value)) => pairs.push((name, value)),
                _ => return Err(invalid("the options cannot be read".to_owned())),
            }
        }
        Ok(pairs)
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

    /// As [`size`](Self::size), where there is a least value that works.
    ///
    /// # Errors
    ///
    /// `InvalidOption` below it.
    pub fn size_at_least(&self, name: &str, least: u64) -> Result<u64> {
        let bytes = self.size(name);
        if bytes < least {
            let message = format!("{name} is {bytes}, at least {least} is needed");
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        Ok(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[OptionSpec] = &[
        spec("cache", OptionKind::Size, "256MiB"),
        spec("wait", OptionKind::Duration, "5s"),
        spec("check", OptionKind::Bool, "no"),
        spec("threads", OptionKind::Int, "2"),
        spec("mode", OptionKind::Enum, "small"),
        spec("label", OptionKind::String, ""),
    ];

    const fn spec(name: &'static str, kind: OptionKind, default: &'static str) -> OptionSpec {
        OptionSpec {
            name,
            kind,
            default,
            help: "",
        }
    }

    #[test]
    fn defaults_fill_what_is_not_given() {
        let options = Options::parse(SPECS, [("cache", "1024"), ("check", "yes")]).unwrap();
        assert_eq!((options.size("cache"), options.bool("check")), (1024, true));
        assert_eq!(options.duration("wait"), Duration::from_secs(5));
        assert_eq!((options.int("threads"), options.str("mode")), (2, "small"));
        assert_eq!(Options::parse(SPECS, []).unwrap().size("cache"), 256 << 20);
    }

    #[test]
    #[cfg(feature = "host")]
    fn options_cross_the_interface_in_one_piece() {
        let given = [("cache", "1024"), ("label", ""), ("mode", "größer")];
        let packed = Options::pack(given);
        assert_eq!(Options::unpack(&packed).unwrap(), given);
        assert!(Options::unpack(&[]).unwrap().is_empty());
        for cut in 1..packed.len() {
            // What is cut between two options is shorter, and nothing worse.
            if let Ok(read) = Options::unpack(&packed[..cut]) {
                assert!(given.starts_with(&read), "{cut}");
            }
        }
        assert!(Options::unpack(&[0xff; 9]).is_err());
    }

    #[test]
    fn wrong_options_are_refused_with_their_name() {
        for (name, value) in [
            ("cahce", "1"),
            ("cache", ""),
            ("cache", "MiB"),
            ("cache", "1MB"),
            ("cache", "99999999999GiB"),
            ("wait", "5"),
            ("check", "maybe"),
            ("threads", "-1"),
            ("threads", "+1"),
            ("mode", ""),
        ] {
            let error = Options::parse(SPECS, [(name, value)]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            assert!(error.to_string().contains(&format!("'{name}'")), "{error}");
        }
        assert!(Options::parse(SPECS, [("wait", "1s"), ("wait", "2s")]).is_err());
    }
}
