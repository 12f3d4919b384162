//! The files of a virtual machine, as an archive that its kernel unpacks: `newc`, as the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::shell::{command, output, run, target};

/// An archive that is being filled.
#[derive(Clone, Default)]
pub(crate) struct Initramfs {
    /// Path without its leading slash -> content.
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// Programs and libraries whose libraries are there.
    linked: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Puts content at an absolute path.
    pub(crate) fn add(&mut self, path: impl AsRef<Path>, content: Vec<u8>) {
        let path = path.as_ref();
        let inside = path.strip_prefix("/").unwrap_or(path);
        self.files.insert(inside.to_owned(), content);
    }

    /// Puts a program at an absolute path, without what debuggers need, and its shared libraries where they are here.
    pub(crate) fn add_program(&mut self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        let stripped = target().join("vm/stripped");
        let mut strip = command("strip", &["-o"]);
        run(strip.arg(&stripped).arg(from))?;
        self.add(to, read(&stripped)?);
        self.add_libraries(from)
    }

    fn add_libraries(&mut self, program: &Path) -> Result<()> {
        let text = program.to_string_lossy();
        let told = output(&mut command("ldd", &[&*text]))?;
        for path in told.split_whitespace().filter(|it| it.starts_with('/')) {
            let path = Path::new(path);
            if self.linked.insert(path.to_owned()) {
                self.add(path, read(path)?);
            }
        }
        Ok(())
    }

    /// The archive.
    pub(crate) fn finish(&self) -> Result<Vec<u8>> {
        let mut archive = Vec::new();
        let mut number = 1;
        let mut directories = BTreeSet::new();
        for (path, content) in &self.files {
            let above: Vec<_> = path.ancestors().skip(1).collect();
            for directory in above.into_iter().rev() {
                if directory != Path::new("") && directories.insert(directory) {
                    entry(&mut archive, directory, DIRECTORY, number, &[])?;
                    number += 1;
                }
            }
            entry(&mut archive, path, FILE, number, content)?;
            number += 1;
        }
        entry(&mut archive, Path::new("TRAILER!!!"), 0, 0, &[])?;
        Ok(archive)
    }
}

/// A file that anyone may run.
const FILE: u32 = 0o100_755;
const DIRECTORY: u32 = 0o040_755;

/// One file: a header of thirteen hexadecimal numbers, the name, the content, each padded to four bytes.
fn entry(archive: &mut Vec<u8>, path: &Path, mode: u32, number: u32, content: &[u8]) -> Result<()> {
    let name = path.to_str().context("a path that is text")?;
    let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
    let name_size = u32::try_from(name.len() + 1)?;
    archive.extend(b"070701");
    // Inode, mode, owner, group, links, time, size, device, device of a node, length of the name, checksum.
    for field in [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_padded_and_ends() {
        let mut files = Initramfs::default();
        files.add("/a/b", b"hello".to_vec());
        let archive = files.finish().unwrap();
        let header = |mode: &str, size: &str, name: &str| {
            let zero = "00000000";
            // The inode is left out.
            format!("{mode}{zero}{zero}00000001{zero}{size}{zero}{zero}{zero}{zero}{name}{zero}")
        };
        let wanted = [
            format!(
                "07070100000001{}a\0",
                header("000041ed", "00000000", "00000002")
            ),
            format!(
                "07070100000002{}a/b\0\0\0hello\0\0\0",
                header("000081ed", "00000005", "00000004")
            ),
            format!(
                "07070100000000{}TRAILER!!!\0\0\0\0",
                header("00000000", "00000000", "0000000b")
            ),
        ];
        assert_eq!(String::from_utf8(archive).unwrap(), wanted.concat());
    }
}
