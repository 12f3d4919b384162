//! Writes what was collected as one compressed archive.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::jiff::Timestamp;
use tar::{Builder, Header};

use super::collect::{Collection, collect};
use super::secrets::without_secrets;
use crate::args::Sysdump;

/// There is no archive.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}; name another file with --output, or - for standard output")]
pub struct Error {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Collects and writes; tells on standard error where it is and what could not be had.
///
/// # Errors
/// The file cannot be written.
pub async fn run(args: &Sysdump) -> Result<(), Error> {
    let now = SystemTime::now();
    let mut all = collect(args).await;
    let name = name(all.node.as_deref(), now);
    all.files.push(("README.txt".to_owned(), readme(&all, now)));
    let path = args.output.clone();
    let path = path.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let written = if path == Path::new("-") {
        write(io::stdout().lock(), &name, &all, now)
    } else {
        // There are names and addresses of the cluster in it: its owner's alone.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path);
        file.and_then(|file| write(file, &name, &all, now))
    };
    let failed = |source| Error {
        path: path.clone(),
        source,
    };
    written.map_err(failed)?;
    for missing in &all.missing {
        eprintln!("mesh-agent: {missing}");
    }
    eprintln!(
        "mesh-agent: {} files in {}",
        all.files.len(),
        path.display()
    );
    Ok(())
}

fn write(to: impl Write, name: &str, all: &Collection, now: SystemTime) -> io::Result<()> {
    let mut archive = Builder::new(GzEncoder::new(to, Compression::default()));
    for (file, content) in &all.files {
        let content = without_secrets(content);
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(since_1970(now).as_secs());
        archive.append_data(&mut header, format!("{name}/{file}"), content.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}

/// What is in it, and what is not.
fn readme(all: &Collection, now: SystemTime) -> String {
    let mut lines = vec![
        format!(
            "mesh-agent {} sysdump of node {}, {}",
            env!("CARGO_PKG_VERSION"),
            all.node.as_deref().unwrap_or("(its agent does not tell)"),
            instant(now)
        ),
        "Private keys, tokens and the environment are left out.".to_owned(),
        String::new(),
    ];
    lines.extend(all.files.iter().map(|(name, _)| name.clone()));
    lines.push(String::new());
    lines.extend(all.missing.iter().map(|it| format!("MISSING {it}")));
    lines.join("\n") + "\n"
}

/// The archive's name, and its directory's.
fn name(node: Option<&str>, now: SystemTime) -> String {
    let at = instant(now).replace([':', '-'], "");
    format!("mesh-sysdump-{}-{at}", node.unwrap_or("node"))
}

fn instant(at: SystemTime) -> String {
    let at = Timestamp::from_second(since_1970(at).as_secs().try_into().unwrap_or_default());
    at.map(|at| at.to_string()).unwrap_or_default()
}

fn since_1970(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn an_archive_has_what_was_collected_but_secrets() {
        let key = "-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY-----\n";
        let all = Collection {
            node: Some("n1".to_owned()),
            files: vec![("agent/log.txt".to_owned(), format!("a line\n{key}"))],
            missing: vec!["x: gone".to_owned()],
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(name(Some("n1"), now), "mesh-sysdump-n1-20231114T221320Z");
        assert!(readme(&all, now).contains("MISSING x: gone"));
        let mut written = Vec::new();
        write(&mut written, "dump", &all, now).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(written.as_slice()));
        let mut entries = archive.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap(), Path::new("dump/agent/log.txt"));
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert_eq!(text, "a line\n[removed]\n");
        assert!(entries.next().is_none());
    }
}
