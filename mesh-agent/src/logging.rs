//! EDGE: what the agent logs: to standard error, by a filter that can be changed, and its last lines in memory.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::EnvFilter;

use crate::args::Format;

/// The client of Kubernetes calls every attempt an error; the source tells once what is wrong.
const DEFAULT: &str = "info,kube_client=off";
/// Lines that are remembered.
const LINES: usize = 1000;
/// Bytes of a line that are remembered.
const LINE: usize = 2 << 10;

/// The log of this process; clones are the same one.
#[derive(Clone)]
pub struct Logging {
    /// The filter as it was at the start.
    first: Arc<str>,
    filter: Arc<Mutex<String>>,
    reload: Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
    recent: Recent,
}

impl Logging {
    /// Begins to log what `RUST_LOG` asks for.
    pub fn start(format: Format) -> Self {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
        let first = filter.to_string();
        let recent = Recent::default();
        let (to_memory, is_terminal) = (recent.clone(), io::stderr().is_terminal());
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(is_terminal)
            .with_writer(move || Both(to_memory.clone()));
        // Each format is a type of its own, and so is what changes its filter.
        let reload: Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync> = match format {
            Format::Text => {
                let builder = builder.with_filter_reloading();
                let handle = builder.reload_handle();
                builder.init();
                Arc::new(move |filter| handle.reload(filter).map_err(|it| it.to_string()))
            }
            Format::Json => {
                let builder = builder.json().flatten_event(true).with_filter_reloading();
                let handle = builder.reload_handle();
                builder.init();
                Arc::new(move |filter| handle.reload(filter).map_err(|it| it.to_string()))
            }
        };
        Self {
            first: first.as_str().into(),
            filter: Arc::new(Mutex::new(first)),
            reload,
            recent,
        }
    }

    /// The filter in force.
    pub fn level(&self) -> String {
        self.filter().clone()
    }

    /// Changes the filter: `LEVEL` is for everything from here on, `TARGET:LEVEL` and `TARGET=LEVEL` add to what is in force.
    ///
    /// # Errors
    /// The text is none of these.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let words: Vec<_> = text.split(',').map(directive).collect::<Result<_, _>>()?;
        let mut filter = self.filter();
        let is_for_all = words.iter().any(|it| !it.contains('='));
        let wanted = if is_for_all {
            words.join(",")
        } else {
            format!("{filter},{}", words.join(","))
        };
        let parsed = EnvFilter::try_new(&wanted).map_err(|error| error.to_string())?;
        let told = parsed.to_string();
        (self.reload)(parsed)?;
        *filter = told;
        Ok(())
    }

    /// Goes back to the filter of the start.
    ///
    /// # Errors
    /// The log is gone.
    pub fn reset(&self) -> Result<(), String> {
        let mut filter = self.filter();
        (self.reload)(EnvFilter::new(&*self.first))?;
        self.first.as_ref().clone_into(&mut filter);
        Ok(())
    }

    /// The last lines, in their order.
    pub fn recent(&self) -> Vec<String> {
        self.recent.lines().iter().cloned().collect()
    }

    fn filter(&self) -> MutexGuard<'_, String> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A level, or a target and its level, as the filter reads it.
fn directive(word: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let word = word.trim();
    let is_level = |it: &str| LEVELS.contains(&it.to_ascii_lowercase().as_str());
    let is_target = |it: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || b"_:-.".contains(&b);
        !it.is_empty() && it.bytes().all(known)
    };
    match word.rsplit_once(['=', ':']) {
        None if is_level(word) => Ok(word.to_owned()),
        Some((target, level)) if is_level(level) && is_target(target) => {
            Ok(format!("{target}={level}"))
        }
        _ => {
            let levels = LEVELS.join(", ");
            Err(format!(
                "{word:?} is neither a level ({levels}) nor TARGET:LEVEL"
            ))
        }
    }
}

/// The last lines that were logged.
#[derive(Clone, Default)]
struct Recent(Arc<Mutex<VecDeque<String>>>);

impl Recent {
    fn remember(&self, line: &[u8]) {
        let line = &line[..line.len().min(LINE)];
        let line = String::from_utf8_lossy(line).trim_end().to_owned();
        let mut lines = self.lines();
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes an event, which comes as a whole, to standard error and to memory.
struct Both(Recent);

impl Write for Both {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.remember(event);
        io::stderr().write_all(event)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Logging {
        /// A log of nothing, whose filter is `info`.
        pub(crate) fn detached() -> Self {
            Self {
                first: "info".into(),
                filter: Arc::new(Mutex::new("info".to_owned())),
                reload: Arc::new(|_| Ok(())),
                recent: Recent::default(),
            }
        }
    }

    #[test]
    fn levels_are_for_all_and_targets_are_added() {
        let logging = Logging::detached();
        logging.set("mesh_agent::proxy:debug").unwrap();
        let told = logging.level();
        assert!(
            told.contains("mesh_agent::proxy=debug") && told.contains("info"),
            "{told}"
        );
        logging.set("access=off").unwrap();
        assert!(logging.level().contains("mesh_agent::proxy=debug"));
        logging.set("warn").unwrap();
        assert_eq!(logging.level(), "warn");
        logging.set("debug,access:off").unwrap();
        let told = logging.level();
        assert!(
            told.contains("access=off") && !told.contains("warn"),
            "{told}"
        );
        logging.reset().unwrap();
        assert_eq!(logging.level(), "info");
    }

    #[test]
    fn what_is_no_level_is_told() {
        for text in [
            "",
            "loud",
            "a:b:loud",
            "[span]=debug",
            "x{y=1}=debug",
            ":debug",
        ] {
            let told = Logging::detached().set(text).unwrap_err();
            assert!(told.contains("neither a level"), "{text}: {told}");
        }
    }

    #[test]
    fn the_last_lines_are_remembered_and_no_more() {
        let recent = Recent::default();
        for number in 0..LINES + 5 {
            recent.remember(format!("line {number}\n").as_bytes());
        }
        recent.remember(&[b'x'; 2 * LINE]);
        let lines = recent.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[0], "line 6");
        assert_eq!(lines[LINES - 1].len(), LINE);
    }
}
