//! Fuzzing: libFuzzer chooses the input of `tests/fuzz`, guided by what of the code it reaches.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell::{command, root, run as succeed, step, target};
use crate::toolchain;

/// Which targets to fuzz, and for how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fuzz only these; without any, all
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each is fuzzed
    #[arg(long, value_name = "N", default_value_t = 4)]
    minutes: u64,
    /// Afterwards replace the corpus in the tree by the few inputs that reach most between them
    #[arg(long)]
    keep: bool,
}

/// The most files that `--keep` leaves of a target.
const KEPT: usize = 32;
/// The longest input that is tried, in bytes.
const LONGEST: u32 = 4096;
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Fuzzes one target after the other; fails when any input was found that must not stay as it is.
pub(crate) fn run(args: &Args) -> Result<()> {
    let all = names()?;
    if let Some(unknown) = args.targets.iter().find(|it| !all.contains(it)) {
        bail!(
            "there is no target {unknown:?}. Remedy: name one of {}",
            all.join(", ")
        );
    }
    let cargo_fuzz = toolchain::ensure_cargo_fuzz()?;
    step("building the fuzz targets");
    succeed(&mut build(&cargo_fuzz))?;
    let chosen = all
        .iter()
        .filter(|it| args.targets.is_empty() || args.targets.contains(it));
    let mut findings = 0;
    for name in chosen {
        let target = Target::new(name)?;
        let run = target.fuzz(args.minutes)?;
        findings += run.findings.len();
        println!("{name:<14}{run}");
        if args.keep && run.findings.is_empty() {
            target.keep()?;
        }
    }
    if findings > 0 {
        bail!(
            "{findings} inputs were found that must be handled; they are under tests/fuzz/regressions, and \
             `cargo xtask test --unit fuzz` replays them"
        );
    }
    Ok(())
}

fn home() -> PathBuf {
    root().join("tests/fuzz")
}

/// Every target, in the order of its name.
fn names() -> Result<Vec<String>> {
    let directory = home().join("targets");
    let mut names: Vec<_> = files(&directory)?
        .iter()
        .filter_map(|it| Some(it.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// What the stable compiler hides is the instrumentation alone; our own code is instrumented as it is, checks included.
fn build(cargo_fuzz: &Path) -> Command {
    let mut build = command(cargo_fuzz, &["fuzz", "build", "--dev"]);
    build
        .args(["--sanitizer", "none", "--no-cfg-fuzzing"])
        .args(["--features", "targets", "--target", TRIPLE])
        .arg("--fuzz-dir")
        .arg(home())
        .arg("--target-dir")
        .arg(target().join("fuzz"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    build
}

struct Target {
    binary: PathBuf,
    /// Inputs in the tree.
    corpus: PathBuf,
    /// Inputs that were found on this machine.
    found: PathBuf,
    /// Inputs that failed.
    regressions: PathBuf,
}

impl Target {
    fn new(name: &str) -> Result<Self> {
        let place = target().join("fuzz");
        let target = Self {
            binary: place.join(TRIPLE).join("debug").join(name),
            corpus: home().join("corpus").join(name),
            found: place.join("corpus").join(name),
            regressions: home().join("regressions").join(name),
        };
        for directory in [&target.corpus, &target.found, &target.regressions] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(target)
    }

    fn libfuzzer(&self, arguments: &[String]) -> Result<String> {
        let mut fuzzer = command(&self.binary, &[]);
        let output = fuzzer
            .args(arguments)
            .stdout(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn fuzz(&self, minutes: u64) -> Result<Run> {
        let before = files(&self.regressions)?;
        let said = self.libfuzzer(&[
            self.found.display().to_string(),
            self.corpus.display().to_string(),
            format!("-artifact_prefix={}/", self.regressions.display()),
            format!("-max_total_time={}", minutes * 60),
            format!("-max_len={LONGEST}"),
            "-timeout=10".to_owned(),
            "-print_final_stats=1".to_owned(),
        ])?;
        let mut findings = files(&self.regressions)?;
        findings.retain(|it| !before.contains(it));
        if !said.contains("stat::number_of_executed_units") && findings.is_empty() {
            bail!("{} ended early:\n{said}", self.binary.display());
        }
        Ok(Run::read(&said, findings))
    }

    /// Lets libFuzzer tell what each input reaches, and keeps those that add most.
    fn keep(&self) -> Result<()> {
        let scratch = empty(&self.found, "merged")?;
        let control = empty(&self.found, "control")?.join("file");
        self.libfuzzer(&[
            "-merge=1".to_owned(),
            format!("-merge_control_file={}", control.display()),
            scratch.display().to_string(),
            self.found.display().to_string(),
            self.corpus.display().to_string(),
        ])?;
        let told = fs::read_to_string(&control)
            .with_context(|| format!("cannot read {}", control.display()))?;
        let kept = most_covering(&told, KEPT)
            .into_iter()
            .map(|it| Ok((it.clone(), fs::read(&it)?)))
            .collect::<Result<Vec<_>>>()?;
        for old in files(&self.corpus)? {
            fs::remove_file(old)?;
        }
        for (path, content) in kept {
            fs::write(
                self.corpus.join(path.file_name().unwrap_or_default()),
                content,
            )?;
        }
        Ok(())
    }
}

/// An empty directory beside another.
fn empty(beside: &Path, name: &str) -> Result<PathBuf> {
    let path = beside.with_extension(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect()
}

/// The files of a merge's control file that reach most edges between them, each adding the most there is to add.
fn most_covering(control: &str, most: usize) -> Vec<PathBuf> {
    // The number of files, twice, then their names, then lines such as "COV 7 12 13".
    let mut lines = control.lines();
    let count = lines.next().and_then(|it| it.parse().ok()).unwrap_or(0);
    let names: Vec<_> = lines.by_ref().skip(1).take(count).collect();
    let mut reached: Vec<(&str, BTreeSet<u64>)> = lines
        .filter_map(|line| {
            let mut words = line.strip_prefix("COV ")?.split(' ');
            let name = *names.get(words.next()?.parse::<usize>().ok()?)?;
            Some((name, words.filter_map(|it| it.parse().ok()).collect()))
        })
        .collect();
    let (mut kept, mut covered) = (Vec::new(), BTreeSet::<u64>::new());
    while kept.len() < most {
        for (_, edges) in &mut reached {
            edges.retain(|it| !covered.contains(it));
        }
        let Some((name, edges)) = reached.iter().max_by_key(|(_, edges)| edges.len()) else {
            break;
        };
        if edges.is_empty() {
            break;
        }
        kept.push(PathBuf::from(name));
        covered.extend(edges);
    }
    kept
}

/// What came of a target.
struct Run {
    executions: u64,
    per_second: u64,
    edges: u64,
    features: u64,
    findings: Vec<PathBuf>,
}

impl Run {
    /// Reads the last of libFuzzer's lines, such as `#123 DONE cov: 4 ft: 5 corp: 6/7b exec/s: 8 rss: 9Mb`.
    fn read(said: &str, findings: Vec<PathBuf>) -> Self {
        let number = |text: &str, key: &str| {
            let (_, rest) = text.rsplit_once(key)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let status = said.lines().rfind(|it| it.contains(" cov: "));
        let of_status = |key| number(status.unwrap_or_default(), key).unwrap_or(0);
        Self {
            executions: number(said, "stat::number_of_executed_units:").unwrap_or(0),
            per_second: number(said, "stat::average_exec_per_sec:").unwrap_or(0),
            edges: of_status(" cov: "),
            features: of_status(" ft: "),
            findings,
        }
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            executions,
            per_second,
            edges,
            features,
            findings,
        } = self;
        write!(
            f,
            "{executions:>12} executions {per_second:>8}/s {edges:>7} edges {features:>7} features {:>3} findings",
            findings.len()
        )?;
        for path in findings {
            write!(f, "\n    {}", path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_off_what_libfuzzer_says() {
        let said = "#2 INITED cov: 1 ft: 1 corp: 1/1b exec/s: 0 rss: 9Mb\n\
                    #99 NEW cov: 40 ft: 50 corp: 6/7b lim: 4 exec/s: 8 rss: 9Mb L: 1/2 MS: 1 X-\n\
                    stat::number_of_executed_units: 1234\nstat::average_exec_per_sec:     56\n";
        let text = Run::read(said, vec!["crash-1".into()]).to_string();
        let words: Vec<_> = text.split_whitespace().collect();
        let expect = "1234 executions 56/s 40 edges 50 features 1 findings crash-1";
        assert_eq!(words.join(" "), expect);
    }

    #[test]
    fn few_files_are_kept_that_cover_most() {
        let control =
            "3\n0\na\nb\nc\nSTARTED 0 1\nFT 0 1\nCOV 0 1 2\nSTARTED 1 1\nCOV 1 1 2 3 4\nCOV 2 9\n";
        let kept = |most| most_covering(control, most);
        assert_eq!(kept(9), [PathBuf::from("b"), "c".into()]);
        assert_eq!(kept(1), [PathBuf::from("b")]);
    }
}
