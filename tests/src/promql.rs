//! What an expression of `PromQL` names, as far as ours go: to hold rules and dashboards against what agents tell.

/// The names in an expression.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Metrics.
    pub metrics: Vec<String>,
    /// Labels, with the values that they must or must not have where those are written out.
    pub labels: Vec<(String, Option<String>)>,
}

/// Words that are no metrics.
const WORDS: [&str; 6] = ["and", "or", "unless", "offset", "by", "without"];

impl Names {
    /// Reads an expression; what is no `PromQL` gives anything.
    pub fn of(expression: &str) -> Self {
        let mut names = Self::default();
        let mut rest = expression;
        let mut word = "";
        while let Some(first) = rest.chars().next() {
            let length = rest
                .find(|it: char| !(it.is_ascii_alphanumeric() || "_:.".contains(it)))
                .unwrap_or(rest.len());
            if length > 0 {
                word = &rest[..length];
                rest = rest[length..].trim_start();
                let is_called = ["(", "by ", "without "]
                    .iter()
                    .any(|it| rest.starts_with(it));
                let is_name = word.starts_with(|it: char| it.is_ascii_alphabetic());
                if is_name && !is_called && !WORDS.contains(&word) {
                    names.metrics.push(word.to_owned());
                }
                continue;
            }
            rest = match first {
                '{' => names.matchers(&rest[1..]),
                '(' if ["by", "without"].contains(&word) => names.grouped(&rest[1..]),
                '[' => rest.split_once(']').map_or("", |it| it.1),
                _ => &rest[first.len_utf8()..],
            };
            word = "";
        }
        names
    }

    fn matchers<'a>(&mut self, text: &'a str) -> &'a str {
        let (inside, rest) = text.split_once('}').unwrap_or((text, ""));
        let mut inside = inside;
        while let Some((name, after)) = inside.split_once(['=', '!']) {
            let mut quoted = after.splitn(3, '"');
            let operator = quoted.next().unwrap_or_default();
            let value = quoted.next().unwrap_or_default();
            let is_written_out = !operator.contains('~') && !value.contains('$');
            let name = name.trim_start_matches([',', ' ']);
            let value = is_written_out.then(|| value.to_owned());
            self.labels.push((name.to_owned(), value));
            inside = quoted.next().unwrap_or_default();
        }
        rest
    }

    fn grouped<'a>(&mut self, text: &'a str) -> &'a str {
        let (inside, rest) = text.split_once(')').unwrap_or((text, ""));
        let labels = inside.split(',').map(|it| (it.trim().to_owned(), None));
        self.labels.extend(labels);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let told = Names::of(
            "sum by (le, a) (rate(x_total{a=\"1\",b!=\"2\",c=~\"3|4\",d=\"$d\"}[5m] offset 1h)) > 0.25 * y:z unless w",
        );
        assert_eq!(told.metrics, ["x_total", "y:z", "w"]);
        let labels: Vec<_> = told
            .labels
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()))
            .collect();
        let expected = [
            ("le", None),
            ("a", None),
            ("a", Some("1")),
            ("b", Some("2")),
            ("c", None),
            ("d", None),
        ];
        assert_eq!(labels, expected);
    }
}
