//! EDGE: files that other programs watch: whole or not there, never half.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Writes a file and puts it in its place at once, after it has reached the disk.
///
/// The temporary file is in the same directory, because container runtimes see only a file that is renamed there, and its
/// name is one that they do not read.
pub fn place(directory: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let fresh = directory.join(format!(".{name}.new"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh)?;
    // The umask may have taken rights away that the runtime needs.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// A file that is kept as it was written.
#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
    name: &'static str,
    mode: u32,
    content: Vec<u8>,
    /// Whether it has been in place.
    placed: bool,
    /// The file that was last found to have the right content.
    seen: Option<Stamp>,
}

/// What tells a file from one that was written in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
    mode: u32,
}

/// What was done about a kept file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It stands as it should.
    Nothing,
    /// It is there for the first time with this content.
    Placed,
    /// Somebody had removed or changed it.
    PutBack,
}

impl Kept {
    /// A file of this name and these permission bits; nothing is written yet.
    pub(super) fn new(directory: &Path, name: &'static str, mode: u32) -> Self {
        Self {
            directory: directory.to_owned(),
            name,
            mode,
            content: Vec::new(),
            placed: false,
            seen: None,
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(self.name)
    }

    /// The directory it is in.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What it is to hold.
    pub(super) fn set(&mut self, content: Vec<u8>) {
        if self.content != content {
            self.content = content;
            self.seen = None;
            self.placed = false;
        }
    }

    /// Puts it in place unless it is; reads it only if it was touched.
    pub(super) fn keep(&mut self) -> io::Result<Done> {
        let path = self.path();
        let present = Stamp::of(&path)?;
        if present.is_some() && present == self.seen {
            return Ok(Done::Nothing);
        }
        let again = self.placed;
        self.placed = true;
        let right_mode = present
            .as_ref()
            .is_some_and(|it| it.mode & 0o7777 == self.mode);
        if right_mode && fs::read(&path)? == self.content {
            self.seen = present;
            return Ok(Done::Nothing);
        }
        place(&self.directory, self.name, &self.content, self.mode)?;
        self.seen = Stamp::of(&path)?;
        Ok(if again { Done::PutBack } else { Done::Placed })
    }
}

impl Stamp {
    /// The stamp of a file; `None` when there is none.
    pub(super) fn of(path: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(it) => Ok(Some(Self {
                inode: it.ino(),
                length: it.len(),
                changed: (it.ctime(), it.ctime_nsec()),
                mode: it.mode(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        // What a killed agent left is no obstacle.
        fs::write(directory.path().join(".x.new"), "half").unwrap();
        place(directory.path(), "x", b"whole", 0o755).unwrap();
        assert_eq!(names(directory.path()), ["x"]);
        let path = directory.path().join("x");
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o7777,
            0o755
        );
    }

    #[test]
    fn it_is_put_back_whatever_happens_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::new(directory.path(), "x", 0o644);
        let path = kept.path();
        kept.set(b"one".to_vec());
        assert_eq!(kept.keep().unwrap(), Done::Placed);
        assert_eq!(kept.keep().unwrap(), Done::Nothing);
        kept.set(b"two".to_vec());
        assert_eq!(kept.keep().unwrap(), Done::Placed, "we want another");
        fs::remove_file(&path).unwrap();
        assert_eq!(kept.keep().unwrap(), Done::PutBack, "removed");
        fs::write(&path, "six").unwrap();
        assert_eq!(kept.keep().unwrap(), Done::PutBack, "changed");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(kept.keep().unwrap(), Done::PutBack, "not readable by all");
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let mut another = Kept::new(directory.path(), "x", 0o644);
        another.set(b"two".to_vec());
        assert_eq!(another.keep().unwrap(), Done::Nothing, "an earlier agent's");
    }
}
