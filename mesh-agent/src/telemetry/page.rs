//! CORE: metrics as text: `OpenMetrics` 1.0, or the text format 0.0.4 of Prometheus for who does not ask for it.
//!
//! The two differ in what a counter's family is called (with `_total` only in the older one) and in the end mark, and a
//! reader of one must not be given the other: the older parser takes `# TYPE x counter` with `x_total` for two metrics.

use std::fmt::{Display, Write};

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;

/// Which text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exposition {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// Prometheus 0.0.4.
    Prometheus,
}

impl Exposition {
    /// What a scraper's `Accept` header asks for.
    pub fn accepted(accept: Option<&str>) -> Self {
        if accept.is_some_and(|it| it.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The `Content-Type` of the text.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows; its samples' names end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A page being written.
pub(super) struct Page {
    text: String,
    exposition: Exposition,
}

/// A family being written; its samples follow each other.
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    suffix: &'static str,
}

impl Page {
    pub(super) fn new(exposition: Exposition) -> Self {
        Self {
            text: String::new(),
            exposition,
        }
    }

    /// Begins a family; `name` without `_total`.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let (kind, suffix) = match kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
        };
        self.header(name, suffix, kind, help);
        Family {
            text: &mut self.text,
            name,
            suffix,
        }
    }

    /// A family of one sample without labels.
    pub(super) fn single(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &str,
        value: impl Display,
    ) {
        self.family(name, kind, help).sample("", value);
    }

    /// A family of histograms, each with its labels.
    pub(super) fn histograms<'h>(
        &mut self,
        name: &'static str,
        help: &str,
        all: impl IntoIterator<Item = (String, &'h Histogram)>,
    ) {
        self.header(name, "", "histogram", help);
        for (labels, histogram) in all {
            let comma = if labels.is_empty() { "" } else { "," };
            let read = histogram.read();
            for (bound, count) in read.buckets {
                let bound = if bound.is_finite() {
                    bound.to_string()
                } else {
                    "+Inf".to_owned()
                };
                let _ = writeln!(
                    self.text,
                    "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}"
                );
            }
            sample(&mut self.text, name, "_sum", &labels, read.sum);
            sample(&mut self.text, name, "_count", &labels, read.count);
        }
    }

    /// The text, complete.
    pub(super) fn finish(mut self) -> String {
        if self.exposition == Exposition::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn header(&mut self, name: &str, suffix: &str, kind: &str, help: &str) {
        let suffix = match self.exposition {
            Exposition::OpenMetrics => "",
            Exposition::Prometheus => suffix,
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.text,
            "# HELP {name}{suffix} {help}.\n# TYPE {name}{suffix} {kind}"
        );
    }
}

impl Family<'_> {
    /// A sample; `labels` as [`label`] writes them, separated by commas.
    pub(super) fn sample(&mut self, labels: &str, value: impl Display) {
        sample(self.text, self.name, self.suffix, labels, value);
    }
}

fn sample(text: &mut String, name: &str, suffix: &str, labels: &str, value: impl Display) {
    let _ = if labels.is_empty() {
        writeln!(text, "{name}{suffix} {value}")
    } else {
        writeln!(text, "{name}{suffix}{{{labels}}} {value}")
    };
}

/// Labels as a page has them.
pub(super) fn labels(all: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in all {
        label(&mut text, name, value);
    }
    text
}

/// Adds a label to others.
pub(super) fn label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    labels.push_str(name);
    labels.push_str("=\"");
    for letter in value.chars() {
        match letter {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            other => labels.push(other),
        }
    }
    labels.push('"');
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn page(exposition: Exposition) -> String {
        let mut page = Page::new(exposition);
        let mut family = page.family("a", Kind::Counter, "How many");
        family.sample(&labels(&[("b", "x\"\\\n"), ("c", "")]), 3_u64);
        page.single("d_seconds", Kind::Gauge, "How long", 0.25);
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(3));
        page.histograms(
            "e_seconds",
            "How long",
            [("f=\"g\"".to_owned(), &histogram)],
        );
        page.finish()
    }

    #[test]
    fn open_metrics() {
        let text = page(Exposition::OpenMetrics);
        let expected = "# HELP a How many.\n# TYPE a counter\na_total{b=\"x\\\"\\\\\\n\",c=\"\"} 3\n\
             # HELP d_seconds How long.\n# TYPE d_seconds gauge\nd_seconds 0.25\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(
            text.contains("e_seconds_bucket{f=\"g\",le=\"+Inf\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("e_seconds_sum{f=\"g\"} 0.003\ne_seconds_count{f=\"g\"} 1\n"));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn prometheus_names_a_counter_as_its_samples() {
        let text = page(Exposition::Prometheus);
        assert!(text.contains("# TYPE a_total counter\na_total{"), "{text}");
        assert!(!text.contains("# EOF"));
    }

    #[test]
    fn what_is_accepted() {
        let of = Exposition::accepted;
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
        assert_eq!(of(Some(prometheus)), Exposition::OpenMetrics);
        assert_eq!(of(Some("*/*")), Exposition::Prometheus);
        assert_eq!(of(None), Exposition::Prometheus);
    }
}
