//! From what an operator writes behind `--backend` to a file.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::manifest;

/// Where libraries may be; parameters, so that tests can set them.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The folder of the running executable.
    pub exe_dir: Option<PathBuf>,
    /// `$KVD_PLUGIN_PATH`, split.
    pub plugin_path: Vec<PathBuf>,
    /// `$CARGO_TARGET_DIR`.
    pub cargo_target_dir: Option<PathBuf>,
}

impl Places {
    /// The places of this process.
    pub fn of_process() -> Self {
        let exe_dir = std::env::current_exe()
            .ok()
            .and_then(|exe| std::fs::canonicalize(exe).ok())
            .and_then(|exe| exe.parent().map(Path::to_owned))
            // A test binary lies one folder below what it was built with.
            .map(|dir| match dir.file_name() {
                Some(name) if name == "deps" => dir.parent().map_or(dir.clone(), Path::to_owned),
                _ => dir,
            });
        Places {
            exe_dir,
            plugin_path: std::env::var_os("KVD_PLUGIN_PATH")
                .map(|paths| std::env::split_paths(&paths).collect())
                .unwrap_or_default(),
            cargo_target_dir: std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from),
        }
    }

    /// The folders that bare names are looked for in, in order.
    fn folders(&self) -> Vec<PathBuf> {
        let mut folders = self.plugin_path.clone();
        if let Some(exe) = &self.exe_dir {
            folders.push(exe.clone());
            folders.push(exe.join("plugins"));
            if let Some(prefix) = exe.parent() {
                folders.push(prefix.join("lib/kvd/plugins"));
            }
        }
        folders.push("/usr/local/lib/kvd/plugins".into());
        folders.push("/usr/lib/kvd/plugins".into());
        folders
    }
}

/// No library was found: one line, and perhaps what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ResolveError {
    message: String,
    hint: Option<String>,
}

impl ResolveError {
    /// What the operator can do.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// Finds the library that `spec` names: a file, a folder with a library or a crate, or a name.
///
/// What holds a `/` is a path first; if nothing is there, its last component is a name. Names are
/// looked for in `places` and the system's folders: never in the current folder, where anyone may
/// have put a file, nor in the linker's paths.
///
/// # Errors
///
/// The message goes behind `backend 'X': `.
pub fn resolve(spec: &str, places: &Places) -> Result<PathBuf, ResolveError> {
    let path = Path::new(spec);
    let looks_like_path = spec.contains('/');
    if looks_like_path && path.is_file() {
        return absolute(path);
    }
    if looks_like_path && path.is_dir() {
        return in_folder(path, places);
    }
    if looks_like_path {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or(spec);
        log::info!("{spec} does not exist here; looking for a plugin named '{name}'");
        return by_name(name, Some(path), places);
    }
    by_name(spec, None, places)
}

fn absolute(path: &Path) -> Result<PathBuf, ResolveError> {
    std::fs::canonicalize(path).map_err(|error| ResolveError {
        message: error.to_string(),
        hint: None,
    })
}

fn is_library(name: &str) -> bool {
    name.ends_with(std::env::consts::DLL_SUFFIX)
}

fn in_folder(folder: &Path, places: &Places) -> Result<PathBuf, ResolveError> {
    let mut libraries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|error| ResolveError {
            message: error.to_string(),
            hint: None,
        })?
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|file| {
            let name = file.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| {
                name.starts_with(std::env::consts::DLL_PREFIX) && is_library(name)
            }) && file.is_file()
        })
        .collect();
    libraries.sort();
    if libraries.len() > 1 {
        // An engine may have brought libraries of its own along.
        let plugins: Vec<_> = libraries.iter().filter(|file| has_manifest(file)).collect();
        if !plugins.is_empty() {
            libraries = plugins.into_iter().cloned().collect();
        }
    }
    match &libraries[..] {
        [one] => return absolute(one),
        [] => {}
        many => {
            let names: Vec<_> = many.iter().map(|path| path.display().to_string()).collect();
            return Err(ResolveError {
                message: format!("more than one library in the folder: {}", names.join(", ")),
                hint: Some("name one of them".to_owned()),
            });
        }
    }
    let Some((package, library)) = crate_names(folder) else {
        return Err(ResolveError {
            message: "the folder holds neither a library nor a crate".to_owned(),
            hint: None,
        });
    };
    let file = format!(
        "{}{library}{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    // What was built together with this executable fits it best.
    if let Some(built) = places.exe_dir.as_ref().map(|dir| dir.join(&file))
        && built.is_file()
    {
        return absolute(&built);
    }
    let mut targets: Vec<PathBuf> = places.cargo_target_dir.iter().cloned().collect();
    let whole = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    for dir in whole
        .ancestors()
        .filter(|dir| dir.join("Cargo.toml").is_file())
    {
        targets.push(dir.join("target"));
    }
    let own = places
        .exe_dir
        .as_ref()
        .and_then(|dir| dir.file_name())
        .and_then(|name| name.to_str())
        .filter(|name| ["release", "debug"].contains(name));
    let mut profiles: Vec<&str> = own.into_iter().collect();
    profiles.extend(["release", "debug"]);
    for profile in profiles {
        for target in &targets {
            let built = target.join(profile).join(&file);
            if built.is_file() {
                return absolute(&built);
            }
        }
    }
    Err(ResolveError {
        message: format!("not built yet: no {file} in target/release or target/debug"),
        hint: Some(format!("cargo build --release -p {package}")),
    })
}

/// Whether the name of the manifest's symbol stands in the file, without loading it.
fn has_manifest(file: &Path) -> bool {
    let symbol = manifest::SYMBOL.as_bytes();
    std::fs::read(file).is_ok_and(|bytes| bytes.windows(symbol.len()).any(|part| part == symbol))
}

/// The package's name and its library's name, from `Cargo.toml`.
fn crate_names(folder: &Path) -> Option<(String, String)> {
    names_in(&std::fs::read_to_string(folder.join("Cargo.toml")).ok()?)
}

/// Reads as much of TOML as two names need: sections, dotted keys, texts on one line, comments;
/// texts over several lines are skipped.
fn names_in(text: &str) -> Option<(String, String)> {
    let (mut section, mut package, mut library) = (String::new(), None, None);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix('[') {
            section = rest.split(']').next().unwrap_or_default().trim().to_owned();
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        if line.starts_with('#') {
            continue;
        }
        for quotes in ["\"\"\"", "'''"] {
            if value.matches(quotes).count() == 1 {
                lines.find(|line| line.contains(quotes));
            }
        }
        let key = key.split('.').map(str::trim);
        let key: Vec<&str> = section
            .split('.')
            .filter(|s| !s.is_empty())
            .chain(key)
            .collect();
        match key[..] {
            ["package", "name"] => package = text_of(value),
            ["lib", "name"] => library = text_of(value),
            _ => {}
        }
    }
    let package = package?;
    let library = library.unwrap_or_else(|| package.replace('-', "_"));
    Some((package, library))
}

/// A quoted text; what stands behind it, such as a comment, is not part of it.
fn text_of(value: &str) -> Option<String> {
    let value = value.trim();
    let quote = value
        .chars()
        .next()
        .filter(|first| ['"', '\''].contains(first))?;
    let (text, _) = value[1..].split_once(quote)?;
    Some(text.to_owned())
}

/// `path` is where it was looked for before.
fn by_name(name: &str, path: Option<&Path>, places: &Places) -> Result<PathBuf, ResolveError> {
    let mut folders = places.folders();
    let mut seen = HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    let plain = name.replace('-', "_");
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let names = [
        format!("{prefix}kvd_{plain}{suffix}"),
        format!("{prefix}{plain}{suffix}"),
        format!("{plain}{suffix}"),
        name.to_owned(),
    ];
    for folder in &folders {
        for file in &names {
            let file = folder.join(file);
            if file
                .file_name()
                .and_then(|n| n.to_str())
                .is_some_and(is_library)
                && file.is_file()
            {
                return absolute(&file);
            }
        }
    }
    let looked: Vec<_> = folders
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    let available = available(&folders);
    let available = if available.is_empty() {
        "which hold none".to_owned()
    } else {
        format!("which hold: {}", available.join(", "))
    };
    let path = path.map_or(String::new(), |path| {
        let whole = std::path::absolute(path);
        let whole = whole.unwrap_or_else(|_| path.to_owned());
        format!("no file or folder {}, and ", whole.display())
    });
    // The name that a plugin of this name should have, or the file's own.
    let file = if is_library(name) {
        &names[3]
    } else {
        &names[0]
    };
    let hint = if Path::new(name).is_file() {
        // Only a hint: taking it would be looking in the current folder.
        Some(format!("for the file in this folder, write ./{name}"))
    } else {
        let is_crate = Path::new("plugins").join(name).join("Cargo.toml").is_file();
        is_crate.then(|| format!("cargo build --release -p kvd-{name}"))
    };
    Err(ResolveError {
        message: format!(
            "not found: {path}no plugin {file} in {}, {available}",
            looked.join(", ")
        ),
        hint,
    })
}

/// A library in one of the folders where names are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The name in its file's name, by which it is found; with `_` where an engine's has `-`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The file that its name finds instead, because that folder comes first.
    pub hidden_by: Option<PathBuf>,
}

/// The libraries that names can find, in the order in which folders are looked at: those that are
/// called as plugins are, and others with a manifest in them.
pub fn found(places: &Places) -> Vec<Found> {
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let mut known: Vec<Found> = Vec::new();
    for folder in places.folders() {
        let files = std::fs::read_dir(folder).into_iter().flatten();
        let mut files: Vec<(String, usize, PathBuf)> = files
            .filter_map(|file| {
                let path = absolute(&file.ok()?.path()).ok()?;
                let name = path.file_name()?.to_str()?.strip_suffix(suffix)?.to_owned();
                let bare = name.strip_prefix(prefix).unwrap_or(&name);
                let plain = bare.strip_prefix("kvd_").unwrap_or(bare);
                // As `by_name` tries them.
                let order = [format!("{prefix}kvd_{plain}"), format!("{prefix}{plain}")];
                let order = order.iter().position(|tried| *tried == name).unwrap_or(2);
                let is_plugin = plain != "plugin_api" && (order == 0 || has_manifest(&path));
                (is_plugin && path.is_file()).then(|| (plain.to_owned(), order, path))
            })
            .collect();
        files.sort();
        for (name, _, path) in files {
            if known.iter().any(|found| found.path == path) {
                continue;
            }
            let first = known.iter().find(|found| found.name == name);
            let hidden_by = first.map(|found| found.path.clone());
            known.push(Found {
                name,
                path,
                hidden_by,
            });
        }
    }
    known
}

/// The names of the plugins in these folders.
fn available(folders: &[PathBuf]) -> Vec<String> {
    let prefix = format!("{}kvd_", std::env::consts::DLL_PREFIX);
    let mut names: Vec<String> = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|file| file.ok()?.file_name().into_string().ok())
        .filter_map(|file| {
            let name = file
                .strip_prefix(&prefix)?
                .strip_suffix(std::env::consts::DLL_SUFFIX)?;
            Some(name.to_owned())
        })
        .filter(|name| name != "plugin_api")
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(exe: &Path) -> Places {
        Places {
            exe_dir: Some(exe.to_owned()),
            ..Places::default()
        }
    }

    fn touch(path: PathBuf) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"").unwrap();
        std::fs::canonicalize(path).unwrap()
    }

    #[test]
    fn a_file_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = touch(dir.path().join("libmine.so"));
        assert_eq!(
            resolve(file.to_str().unwrap(), &Places::default()),
            Ok(file)
        );
    }

    #[test]
    fn a_bare_name_is_found_beside_the_executable() {
        let dir = tempfile::tempdir().unwrap();
        let file = touch(dir.path().join("libkvd_my_engine.so"));
        assert_eq!(resolve("my-engine", &places(dir.path())), Ok(file.clone()));
        assert_eq!(
            resolve("libkvd_my_engine.so", &places(dir.path())),
            Ok(file.clone())
        );
        assert_eq!(resolve("plugins/my-engine", &places(dir.path())), Ok(file));
    }

    #[test]
    fn a_crate_is_found_where_it_was_built() {
        let dir = tempfile::tempdir().unwrap();
        let krate = dir.path().join("plugins/mine");
        std::fs::create_dir_all(&krate).unwrap();
        std::fs::write(dir.path().join("Cargo.toml"), "[workspace]\n").unwrap();
        std::fs::write(krate.join("Cargo.toml"), "[package]\nname = \"kvd-mine\"\n").unwrap();
        let spec = krate.to_str().unwrap();
        let error = resolve(spec, &Places::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not built yet: no libkvd_mine.so in target/release or target/debug"
        );
        assert_eq!(error.hint(), Some("cargo build --release -p kvd-mine"));
        let debug = touch(dir.path().join("target/debug/libkvd_mine.so"));
        assert_eq!(resolve(spec, &Places::default()), Ok(debug.clone()));
        let release = touch(dir.path().join("target/release/libkvd_mine.so"));
        assert_eq!(resolve(spec, &Places::default()), Ok(release));
        let exe = dir.path().join("target/debug");
        assert_eq!(resolve(spec, &places(&exe)), Ok(debug));
    }

    #[test]
    fn an_unknown_name_lists_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path().join("libkvd_redb.so"));
        let error = resolve("r-db", &places(dir.path()))
            .unwrap_err()
            .to_string();
        let first = format!(
            "not found: no plugin libkvd_r_db.so in {}, ",
            dir.path().display()
        );
        assert!(error.starts_with(&first), "{error}");
        assert!(error.ends_with(", which hold: redb"), "{error}");
    }

    #[test]
    fn a_path_that_is_not_there_is_named_before_the_folders_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("libmine.so");
        // Twice the same folder.
        let mut places = places(dir.path());
        places.plugin_path.push(dir.path().to_owned());
        let error = resolve(file.to_str().unwrap(), &places).unwrap_err();
        let folder = dir.path().display();
        let expected = format!(
            "not found: no file or folder {folder}/libmine.so, and no plugin libmine.so in {folder}, \
             {folder}/plugins, "
        );
        assert!(error.to_string().starts_with(&expected), "{error}");
        let last = "/usr/lib/kvd/plugins, which hold ";
        assert!(error.to_string().contains(last), "{error}");
        let error = resolve("plugins/nope", &places).unwrap_err().to_string();
        let here = std::env::current_dir().unwrap();
        let expected = format!(
            "not found: no file or folder {}/plugins/nope, and no plugin libkvd_nope.so in ",
            here.display()
        );
        assert!(error.starts_with(&expected), "{error}");
    }

    #[test]
    fn what_names_can_find_is_listed_in_their_order() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let places = Places {
            plugin_path: vec![first.path().to_owned(), second.path().to_owned()],
            // The same folder again.
            exe_dir: Some(first.path().to_owned()),
            ..Places::default()
        };
        let redb = touch(first.path().join("libkvd_redb.so"));
        let other = touch(first.path().join("libother.so"));
        touch(first.path().join("libhelper.so"));
        touch(first.path().join("libkvd_plugin_api.so"));
        touch(first.path().join("libkvd_redb.rlib"));
        let hidden = touch(second.path().join("libkvd_redb.so"));
        std::fs::write(&other, b"\x7fELF KVD_PLUGIN_MANIFEST\0").unwrap();
        let found: Vec<_> = { found(&places).into_iter() }
            .filter(|found| !found.path.starts_with("/usr"))
            .map(|found| (found.name, found.path, found.hidden_by))
            .collect();
        let expected = [
            ("other".to_owned(), other, None),
            ("redb".to_owned(), redb.clone(), None),
            ("redb".to_owned(), hidden, Some(redb.clone())),
        ];
        assert_eq!(found, expected);
        assert_eq!(resolve("redb", &places), Ok(redb));
    }

    #[test]
    fn a_bare_name_is_not_looked_for_in_the_current_folder() {
        // Tests run in the crate's own folder, where there is a file and a folder of this name.
        for name in ["Cargo.toml", "src"] {
            assert!(Path::new(name).exists());
            let error = resolve(name, &Places::default()).unwrap_err();
            assert!(error.to_string().starts_with("not found"), "{error}");
        }
        let error = resolve("Cargo.toml", &Places::default()).unwrap_err();
        assert_eq!(
            error.hint(),
            Some("for the file in this folder, write ./Cargo.toml")
        );
        assert!(resolve("./Cargo.toml", &Places::default()).is_ok());
    }

    #[test]
    fn a_crate_is_found_beside_the_executable_first() {
        let dir = tempfile::tempdir().unwrap();
        let krate = dir.path().join("mine");
        std::fs::create_dir_all(&krate).unwrap();
        std::fs::write(krate.join("Cargo.toml"), "[package]\nname = \"kvd-mine\"\n").unwrap();
        touch(krate.join("target/release/libkvd_mine.so"));
        let beside = touch(dir.path().join("bin/libkvd_mine.so"));
        let exe = dir.path().join("bin");
        assert_eq!(resolve(krate.to_str().unwrap(), &places(&exe)), Ok(beside));
    }

    #[test]
    fn a_folder_gives_its_only_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let spec = format!("{}/", dir.path().display());
        touch(dir.path().join("other.so"));
        touch(dir.path().join("libreadme.txt"));
        let error = resolve(&spec, &Places::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the folder holds neither a library nor a crate"
        );
        let mine = touch(dir.path().join("libmine.so"));
        assert_eq!(resolve(&spec, &Places::default()), Ok(mine.clone()));
        touch(dir.path().join("libhelper.so"));
        let error = resolve(&spec, &Places::default()).unwrap_err();
        assert!(
            error.to_string().starts_with("more than one library"),
            "{error}"
        );
        std::fs::write(&mine, b"\x7fELF KVD_PLUGIN_MANIFEST\0").unwrap();
        assert_eq!(resolve(&spec, &Places::default()), Ok(mine.clone()));
        std::fs::copy(&mine, dir.path().join("libthird.so")).unwrap();
        let error = resolve(&spec, &Places::default()).unwrap_err().to_string();
        assert!(
            error.contains("libmine.so") && error.contains("libthird.so"),
            "{error}"
        );
        assert!(!error.contains("libhelper.so"), "{error}");
    }

    #[test]
    fn names_are_read_from_a_manifest_as_people_write_it() {
        let names = |text: &str| {
            let (package, library) = names_in(text)?;
            Some(format!("{package} {library}"))
        };
        for (text, expected) in [
            ("[package]\nname = \"a-b\"\n", Some("a-b a_b")),
            (
                "[package] # mine\nname = \"a-b\" # not \"c\"\n",
                Some("a-b a_b"),
            ),
            ("[ package ]\n\tname='a#b'#c\n", Some("a#b a#b")),
            (
                "[package]\nname = \"a\"\n[lib]\nname = \"l\" # x\n",
                Some("a l"),
            ),
            (
                "[lib]\nname = \"l\"\n[package]\nname = \"a\"\n",
                Some("a l"),
            ),
            ("package.name = \"a\"\nlib . name = \"l\"\n", Some("a l")),
            ("[package]\n# name = \"b\"\nname = \"a\"\n", Some("a a")),
            (
                "[package]\nname = \"a\"\n[[bin]]\nname = \"b\"\n",
                Some("a a"),
            ),
            (
                "[package]\nname = \"a\"\n[package.metadata.x]\nname = \"b\"\n",
                Some("a a"),
            ),
            (
                "[package]\nname = \"a\"\ndescription = \"\"\"\nname = \"b\"\n\"\"\"\nedition = \"2024\"\n",
                Some("a a"),
            ),
            ("[package]\nversion = \"1\"\n", None),
            ("[workspace]\n", None),
        ] {
            assert_eq!(names(text).as_deref(), expected, "{text}");
        }
    }
}
