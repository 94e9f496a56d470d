//! A crate with an engine to begin with: it builds, keeps the contract, and asks its author what
//! the contract asks of an engine.

use std::path::Path;

/// Where the engine's name stands in the files.
const NAME: &str = "engine-name";

/// Where its name stands in identifiers and file names.
const PLAIN: &str = "engine_name";

/// Where the dependency on this crate is described, in TOML.
const VERSION: &str = "\"KVD_PLUGIN_API\"";

const FILES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../../template/Cargo.toml.in")),
    ("README.md", include_str!("../../template/README.md")),
    ("src/lib.rs", include_str!("../../template/src/lib.rs")),
    (
        "tests/contract.rs",
        include_str!("../../template/tests/contract.rs"),
    ),
];

/// The files of a crate for the engine `name`, with their paths in its folder.
///
/// It depends on the `kvd-plugin-api` in the folder `plugin_api`, which is best absolute, or else
/// on the published one.
///
/// # Errors
///
/// Why this is no name for an engine, or no folder that can be written into TOML.
pub fn files(name: &str, plugin_api: Option<&Path>) -> Result<Vec<(&'static str, String)>, String> {
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    if !name.bytes().all(is_plain) || !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Err(format!(
            "'{name}' is no name for an engine: a-z, 0-9, - and _, beginning with a letter"
        ));
    }
    let dependency = match plugin_api {
        None => "version = \"1\"".to_owned(),
        Some(folder) => {
            let folder = folder
                .to_str()
                .filter(|folder| !folder.contains(['\'', '\n']));
            let folder =
                folder.ok_or("the folder of kvd-plugin-api has a name that TOML cannot hold")?;
            format!("path = '{folder}'")
        }
    };
    let fill = |text: &str| {
        text.replace(PLAIN, &name.replace('-', "_"))
            .replace(NAME, name)
            .replace(&format!("version = {VERSION}"), &dependency)
    };
    Ok(FILES
        .iter()
        .map(|(path, text)| (*path, fill(text)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_filled_in() {
        let files = files("my-engine", Some(Path::new("/some/where"))).unwrap();
        let whole: String = files.into_iter().map(|(_, text)| text).collect();
        for place in [NAME, PLAIN, VERSION] {
            assert!(!whole.contains(place), "{place} in {whole}");
        }
        assert!(whole.contains("name = \"kvd-my-engine\"") && whole.contains("kvd_my_engine"));
        assert!(whole.contains("path = '/some/where'"), "{whole}");
    }

    #[test]
    fn a_name_that_no_engine_may_have_is_refused() {
        for name in ["", "Mine", "a b", "a/b", "1st", "-a", "../a", "a\"", "é"] {
            assert!(files(name, None).is_err(), "{name}");
        }
    }
}
