//! What we depend on: where it comes from, and under which licences.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::shell::{cargo, output, step};

/// Licences of parts that may go with ours.
const ALLOWED: [&str; 13] = [
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Where parts may come from; ours come from nowhere.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

/// Checks every package of the lock file.
pub(crate) fn check() -> Result<()> {
    step("checking licences and sources of dependencies");
    let text = output(&mut cargo(&["metadata", "--format-version=1", "--locked"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata")?;
    let problems: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .filter_map(|package| Some((&package.name, problem(package)?)))
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    let lines = problems.values().map(String::as_str);
    bail!("{}", lines.collect::<Vec<_>>().join("\n"))
}

fn problem(package: &Package) -> Option<String> {
    let Package {
        name,
        version,
        license,
        source,
    } = package;
    if source.as_deref().is_some_and(|it| it != REGISTRY) {
        return Some(format!(
            "{name} {version} is not from crates.io: {source:?}"
        ));
    }
    let license = license.as_deref().unwrap_or("none");
    let is_allowed = Expression::parse_mode(license, ParseMode::LAX).is_ok_and(|expression| {
        expression.evaluate(|required| {
            let id = required.license.id();
            id.is_some_and(|id| ALLOWED.contains(&id.name))
        })
    });
    (!is_allowed).then(|| {
        format!(
            "{name} {version}: licence {license} is not among those that may go with ours (ALLOWED)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(license: &str, source: Option<&str>) -> Package {
        Package {
            name: "part".to_owned(),
            version: "1.0.0".to_owned(),
            license: Some(license.to_owned()),
            source: source.map(str::to_owned),
        }
    }

    #[test]
    fn one_licence_to_choose_is_enough_and_none_to_keep_may_be_foreign() {
        for license in [
            "MIT OR GPL-3.0-only",
            "MIT/Apache-2.0",
            "(MIT OR GPL-2.0-only) AND ISC",
        ] {
            assert_eq!(problem(&package(license, Some(REGISTRY))), None);
        }
        for license in ["GPL-3.0-only", "MIT AND AGPL-3.0-only", "none"] {
            assert!(
                problem(&package(license, Some(REGISTRY))).is_some(),
                "{license}"
            );
        }
    }

    #[test]
    fn other_sources_are_told() {
        let foreign = package("MIT", Some("git+https://example.com/part"));
        assert!(problem(&foreign).unwrap().contains("crates.io"));
        assert_eq!(problem(&package("Apache-2.0", None)), None);
    }
}
