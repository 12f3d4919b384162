//! Kernels of Debian, as packages have them: downloaded and unpacked under `target/vm`, never installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{command, output, run, step, target};

/// A series of kernels, and the Debian suite that has it.
#[derive(Clone, Copy)]
pub(crate) struct Series {
    /// What the versions of its kernels begin with.
    pub(crate) name: &'static str,
    suite: &'static str,
    security: bool,
}

const fn series(name: &'static str, suite: &'static str, security: bool) -> Series {
    Series {
        name,
        suite,
        security,
    }
}

/// From the oldest that we support to the newest that Debian builds for its stable release.
pub(crate) const ALL: [Series; 5] = [
    series("5.10", "bullseye-security", true),
    series("6.1", "bookworm-security", true),
    series("6.12", "trixie", false),
    series("6.18", "trixie-backports", false),
    series("7", "trixie-backports", false),
];

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// Its release, as `uname -r` tells it.
    pub(crate) release: String,
    /// The file to boot.
    pub(crate) image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The kernel of a series: the one that is here already, otherwise the newest that the suite has.
    pub(crate) fn of(series: Series) -> Result<Self> {
        let directory = home().join("kernels").join(series.name);
        if !directory.is_dir() {
            download(series, &directory)
                .with_context(|| format!("cannot download a kernel {}", series.name))?;
        }
        let modules = MODULES.map(|it| directory.join(it));
        let modules = modules.into_iter().find(|it| it.is_dir());
        let modules = modules.with_context(|| format!("no modules in {}", directory.display()))?;
        let release = names(&modules)?.pop().context("no release")?;
        // From 7 on the kernel is beside its modules.
        let images = [
            modules.join(&release).join("vmlinuz"),
            directory.join(format!("boot/vmlinuz-{release}")),
        ];
        let image = images.into_iter().find(|it| it.is_file());
        let image = image.with_context(|| format!("no kernel in {}", directory.display()))?;
        Ok(Self {
            modules: modules.join(&release),
            release,
            image,
        })
    }

    /// These modules and all that they need, each after those: path inside the package, and content. What the kernel has
    /// built in is left out.
    pub(crate) fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        find(&self.modules, &mut files)?;
        let mut loading = Loading {
            files,
            seen: BTreeSet::new(),
            modules: Vec::new(),
        };
        for name in wanted {
            loading.add(name)?;
        }
        Ok(loading.modules)
    }
}

/// Modules that are being put in order.
struct Loading {
    files: Vec<PathBuf>,
    seen: BTreeSet<String>,
    modules: Vec<(String, Vec<u8>)>,
}

impl Loading {
    fn add(&mut self, name: &str) -> Result<()> {
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(file) = self.files.iter().find(|file| module_name(file) == name) else {
            return Ok(());
        };
        let content = if file.extension().is_some_and(|it| it == "xz") {
            let unpacked = command("xz", &["-dc"]).arg(file).output()?;
            ensure!(
                unpacked.status.success(),
                "cannot unpack {}",
                file.display()
            );
            unpacked.stdout
        } else {
            fs::read(file)?
        };
        for needed in needs(&content) {
            self.add(&needed)?;
        }
        self.modules.push((format!("{name}.ko"), content));
        Ok(())
    }
}

/// The module of a file: `nf_nat` of `nf_nat.ko.xz`.
fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The modules that a module says it needs, in its section `.modinfo`.
fn needs(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|it| it == FIELD) else {
        return Vec::new();
    };
    let text = module[at + FIELD.len()..].split(|byte| *byte == 0).next();
    let text = String::from_utf8_lossy(text.unwrap_or_default());
    let names = text.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

fn find(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.to_string_lossy().contains(".ko") {
            files.push(path);
        }
    }
    Ok(())
}

/// Downloads the packages of a series' newest kernel, whose signatures and checksums apt checks, and unpacks them.
fn download(series: Series, directory: &Path) -> Result<()> {
    let apt = Apt::of(series)?;
    let packages = apt.newest(series)?;
    step(&format!("downloading {}", packages.join(" and ")));
    let unpacked = home().join("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked)?;
    let mut fetch = apt.command("apt-get", &["-qq", "download"]);
    run(fetch.args(&packages).current_dir(&unpacked))?;
    for name in names(&unpacked)? {
        let package = unpacked.join(&name);
        run(command("dpkg-deb", &["-x"]).arg(&package).arg(&unpacked))?;
        fs::remove_file(package)?;
    }
    if let Some(above) = directory.parent() {
        fs::create_dir_all(above)?;
    }
    Ok(fs::rename(unpacked, directory)?)
}

/// Apt with sources, lists and a cache of its own: nothing changes in the machine's.
struct Apt {
    home: PathBuf,
}

impl Apt {
    /// Reads the lists of a series' suite.
    fn of(series: Series) -> Result<Self> {
        let apt = Self {
            home: home().join("apt").join(series.suite),
        };
        fs::create_dir_all(apt.home.join("lists/partial"))?;
        let archive = if series.security {
            "debian-security"
        } else {
            "debian"
        };
        let source = format!(
            "deb [arch=amd64 signed-by={KEYS}] http://deb.debian.org/{archive} {} main\n",
            series.suite
        );
        ensure!(
            Path::new(KEYS).is_file(),
            "{KEYS} is missing. Remedy: install the package debian-archive-keyring"
        );
        fs::write(apt.home.join("sources.list"), source)?;
        run(&mut apt.command("apt-get", &["-qq", "update"]))?;
        Ok(apt)
    }

    /// The packages of the newest kernel of a series.
    fn newest(&self, series: Series) -> Result<Vec<String>> {
        let pattern = format!(
            "^linux-(image|binary|modules)-{}[.].*cloud-amd64$",
            series.name
        );
        let found = output(&mut self.command("apt-cache", &["search", "--names-only", &pattern]))?;
        let packages: Vec<_> = found
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let releases = packages
            .iter()
            .filter_map(|it| it.strip_prefix("linux-image-"));
        let Some(newest) = releases.max_by_key(|release| numbers(release)) else {
            bail!("{} has none", series.suite);
        };
        // From 7 on the image's package is empty, and its two parts have packages of their own.
        let of = |kind: &str| format!("linux-{kind}-{newest}");
        let parts = [of("binary"), of("modules")];
        if parts.iter().all(|part| packages.contains(&&**part)) {
            return Ok(parts.into());
        }
        Ok(vec![of("image")])
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let path = |name: &str| self.home.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::Lists={}", path("lists")),
            format!("Dir::Cache={}", self.home.display()),
            "APT::Architecture=amd64".to_owned(),
            // The unprivileged user of apt may not write under `target`.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command.args(arguments);
        command
    }
}

/// Where a package has the modules of its one release.
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The numbers in a release, by which releases are ordered.
fn numbers(release: &str) -> Vec<u32> {
    let numbers = release.split(|c: char| !c.is_ascii_digit());
    numbers.filter_map(|it| it.parse().ok()).collect()
}

/// Where everything about virtual machines is kept.
pub(crate) fn home() -> PathBuf {
    target().join("vm")
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_tells_what_it_needs() {
        let section = b"\0license=GPL\0depends=nf_tables,nf-nat\0name=nft_masq\0";
        assert_eq!(needs(section), ["nf_tables", "nf_nat"]);
        assert!(needs(b"\0depends=\0name=veth\0").is_empty());
        assert!(needs(b"").is_empty());
        assert_eq!(module_name(Path::new("/a/nf-nat.ko.xz")), "nf_nat");
    }

    #[test]
    fn releases_are_ordered_by_number() {
        let newest = ["6.12.94+deb13", "6.12.107+deb13", "6.12.9+deb13"]
            .into_iter()
            .max_by_key(|release| numbers(release));
        assert_eq!(newest, Some("6.12.107+deb13"));
    }
}
