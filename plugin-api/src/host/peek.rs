//! Reading a manifest from a library's file, without loading it.

use std::path::Path;

use super::{LoadError, Manifest};
use crate::manifest;

const LOADED_SEGMENT: u64 = 1;
const RELOCATIONS: u64 = 4;
const DYNAMIC_SYMBOLS: u64 = 11;

/// Reads the manifest of a library without running anything of it: also of one for another
/// machine, or whose own libraries are missing.
///
/// Only 64-bit little-endian ELF files are understood.
///
/// # Errors
///
/// No such file, or no manifest can be found in it.
pub fn peek_manifest(path: &Path) -> Result<Manifest, LoadError> {
    let bytes = std::fs::read(path).map_err(|error| LoadError::new(error.to_string()))?;
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err(LoadError::new("not a shared library of a kind known here"));
    }
    Elf(&bytes)
        .manifest()
        .ok_or_else(|| LoadError::new("not a kvd plugin (no KVD_PLUGIN_MANIFEST symbol)"))
}

/// A file of that kind. What it says of itself is not believed: whatever lies outside is `None`.
struct Elf<'a>(&'a [u8]);

/// A section's header.
struct Section {
    kind: u64,
    offset: u64,
    bytes: u64,
    link: u64,
}

impl<'a> Elf<'a> {
    fn bytes(&self, at: u64, len: u64) -> Option<&'a [u8]> {
        let (at, len) = (usize::try_from(at).ok()?, usize::try_from(len).ok()?);
        self.0.get(at..at.checked_add(len)?)
    }

    fn number(&self, at: u64, len: u64) -> Option<u64> {
        let mut number = [0; 8];
        number[..len as usize].copy_from_slice(self.bytes(at, len)?);
        Some(u64::from_le_bytes(number))
    }

    /// A text up to its NUL.
    fn text(&self, at: u64) -> Option<&'a [u8]> {
        let rest = self.0.get(usize::try_from(at).ok()?..)?;
        rest.split(|byte| *byte == 0).next()
    }

    fn sections(&self) -> Option<Vec<Section>> {
        let (table, size, count) = (
            self.number(0x28, 8)?,
            self.number(0x3a, 2)?,
            self.number(0x3c, 2)?,
        );
        (0..count)
            .map(|index| {
                let at = table.checked_add(index * size)?;
                // The last field of the header lies within the file, so the others do.
                self.bytes(at, 0x40)?;
                Some(Section {
                    kind: self.number(at + 0x04, 4)?,
                    offset: self.number(at + 0x18, 8)?,
                    bytes: self.number(at + 0x20, 8)?,
                    link: self.number(at + 0x28, 4)?,
                })
            })
            .collect()
    }

    /// Where in the file the byte lies that is loaded at `address`.
    fn at_address(&self, address: u64) -> Option<u64> {
        let (table, size, count) = (
            self.number(0x20, 8)?,
            self.number(0x36, 2)?,
            self.number(0x38, 2)?,
        );
        (0..count).find_map(|index| {
            let at = table.checked_add(index * size)?;
            self.bytes(at, 0x38)?;
            let (offset, start, bytes) = (
                self.number(at + 0x08, 8)?,
                self.number(at + 0x10, 8)?,
                self.number(at + 0x20, 8)?,
            );
            let within = address.checked_sub(start)?;
            let is_here = self.number(at, 4)? == LOADED_SEGMENT && within < bytes;
            is_here.then(|| offset.checked_add(within))?
        })
    }

    /// The address of an exported symbol.
    fn symbol(&self, sections: &[Section], name: &[u8]) -> Option<u64> {
        let symbols = sections
            .iter()
            .find(|section| section.kind == DYNAMIC_SYMBOLS)?;
        // A length that is not true could be counted to for years.
        self.bytes(symbols.offset, symbols.bytes)?;
        let names = sections.get(usize::try_from(symbols.link).ok()?)?.offset;
        (0..symbols.bytes / 24).find_map(|index| {
            let at = symbols.offset.checked_add(index * 24)?;
            let found = self.text(names.checked_add(self.number(at, 4)?)?)?;
            (found == name).then(|| self.number(at + 8, 8))?
        })
    }

    /// The address that a pointer will hold once the library is loaded.
    fn pointer(&self, sections: &[Section], address: u64) -> Option<u64> {
        for section in sections {
            if section.kind != RELOCATIONS {
                continue;
            }
            for index in 0..section.bytes / 24 {
                let at = section.offset.checked_add(index * 24)?;
                if self.number(at, 8)? == address {
                    return self.number(at + 16, 8);
                }
            }
        }
        // Packed relocations leave the address in its place.
        self.number(self.at_address(address)?, 8)
    }

    fn manifest(&self) -> Option<Manifest> {
        let sections = self.sections()?;
        let address = self.symbol(&sections, manifest::SYMBOL.as_bytes())?;
        let at = self.at_address(address)?;
        let size = self.number(at + 8, 4)?;
        if self.bytes(at, 8)? != manifest::MAGIC || size < manifest::SIZE_MIN as u64 {
            return None;
        }
        let text = |field: usize| {
            // An older library has less of it.
            if field as u64 >= size {
                return None;
            }
            let pointer = self.pointer(&sections, address.checked_add(field as u64)?)?;
            let text = self.text(self.at_address(pointer)?)?;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        let text = |field| text(field).unwrap_or_default();
        let flags = self.number(at + 16, 8)?;
        Some(Manifest {
            api_version: self.number(at + 12, 4)? as u32,
            debug: flags & manifest::FLAG_DEBUG != 0,
            is_c: flags & manifest::FLAG_C_TABLE != 0,
            name: text(std::mem::offset_of!(manifest::Manifest, name)),
            version: text(std::mem::offset_of!(manifest::Manifest, version)),
            plugin_api: text(std::mem::offset_of!(manifest::Manifest, plugin_api)),
            rustc: text(std::mem::offset_of!(manifest::Manifest, rustc)),
            target: text(std::mem::offset_of!(manifest::Manifest, target)),
            about: text(std::mem::offset_of!(manifest::Manifest, about)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A damaged length must not make the reader count to it.
    #[test]
    fn a_table_of_symbols_beyond_the_file_is_no_table() {
        let mut file = vec![0; 0x80];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        // One section, behind the file's header: symbols of a length that no file has.
        file[0x28] = 0x40;
        file[0x3a] = 0x40;
        file[0x3c] = 1;
        file[0x44] = DYNAMIC_SYMBOLS as u8;
        file[0x60..0x68].fill(0xff);
        let sections = Elf(&file).sections().unwrap();
        assert_eq!((sections.len(), sections[0].bytes), (1, u64::MAX));
        assert_eq!(Elf(&file).symbol(&sections, b"any"), None);
    }
}
