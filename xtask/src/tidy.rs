//! The direction of dependencies, checked on the source text: one outside library lives in one folder, and the files that
//! call themselves `CORE` do no input or output.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::{root, step};

/// An outside library of the agent, and the folders of `mesh-agent/src` that may name it.
const HOMES: [(&str, &[&str]); 3] = [
    ("aya", &["dataplane"]),
    ("kube", &["cluster"]),
    ("rustls", &["pki", "hbone"]),
];

/// What a `CORE` file never names: it takes values and returns values.
const NOT_IN_CORE: [&str; 6] = [
    "tokio::",
    "aya::",
    "kube::",
    "rustls::",
    "std::net::TcpStream",
    "std::net::TcpListener",
];

/// Checks every source file of the workspace.
pub(crate) fn run() -> Result<()> {
    step("checking the direction of dependencies");
    let mut problems = Vec::new();
    for file in sources(root())? {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let path = file.strip_prefix(root()).unwrap_or(&file);
        problems.extend(misplaced(path, &text));
        problems.extend(impure(path, &text));
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{}", problems.join("\n"));
}

/// Libraries that a file of the agent names outside their home.
fn misplaced(path: &Path, text: &str) -> Vec<String> {
    let Ok(inside) = path.strip_prefix("mesh-agent/src") else {
        return Vec::new();
    };
    let home = inside.iter().next().and_then(|folder| folder.to_str());
    let home = home.map(|name| name.trim_end_matches(".rs"));
    let strangers = HOMES
        .iter()
        .filter(|(_, homes)| !home.is_some_and(|home| homes.contains(&home)));
    strangers
        .filter_map(|(library, homes)| {
            let line = first_use(text, &format!("{library}::"))?;
            let homes = homes.join(" and ");
            Some(format!(
                "{}:{line}: names {library}, which only {homes} may",
                path.display()
            ))
        })
        .collect()
}

/// What a file that calls itself `CORE` names but must not.
fn impure(path: &Path, text: &str) -> Vec<String> {
    if !text.starts_with("//! CORE") {
        return Vec::new();
    }
    NOT_IN_CORE
        .iter()
        .filter_map(|token| {
            let line = first_use(text, token)?;
            Some(format!(
                "{}:{line}: is CORE and names {token}",
                path.display()
            ))
        })
        .collect()
}

/// The number of the first line that uses a path, comments aside. `tokio_rustls::` is not a use of `rustls::`.
fn first_use(text: &str, token: &str) -> Option<usize> {
    let found = text.lines().position(|line| {
        let code = line.split("//").next().unwrap_or(line);
        code.match_indices(token).any(|(at, _)| {
            let before = code[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
        })
    })?;
    Some(found + 1)
}

/// Every Rust file of the workspace's own packages.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        run().unwrap();
    }

    #[test]
    fn a_library_outside_its_home_is_told() {
        let check = |path: &str, text: &str, problems: usize| {
            assert_eq!(
                misplaced(Path::new(path), text).len(),
                problems,
                "{path}: {text}"
            );
        };
        check("mesh-agent/src/proxy/copy.rs", "use aya::maps::Array;", 1);
        check(
            "mesh-agent/src/agent.rs",
            "fn f() { rustls::f(); kube::f() }",
            2,
        );
        check(
            "mesh-agent/src/dataplane/maps.rs",
            "use aya::maps::Array;",
            0,
        );
        check(
            "mesh-agent/src/hbone/tls.rs",
            "use rustls::ClientConfig;",
            0,
        );
        check("mesh-agent/src/agent.rs", "// not rustls::f", 0);
        check(
            "mesh-agent/src/proxy/copy.rs",
            "use tokio_rustls::TlsStream;",
            0,
        );
        check("tests/src/counters.rs", "use aya::maps::Array;", 0);
    }

    #[test]
    fn a_core_file_is_pure() {
        let check = |text: &str, problems: usize| {
            assert_eq!(impure(Path::new("a.rs"), text).len(), problems, "{text}");
        };
        check("//! CORE: x\nuse tokio::time;\n", 1);
        check("//! EDGE: x\nuse tokio::time;\n", 0);
        check("//! CORE: x\nuse std::net::IpAddr;\n", 0);
    }
}
