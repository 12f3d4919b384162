//! CORE: where a connection stands in a trace: W3C Trace Context, level 1, as CONNECT carries it.
//!
//! A peer can write anything into its headers, so no decision rests on them but what is told of its connections.

use std::fmt;
use std::str::FromStr;

/// What identifies a whole trace; not all zero.
pub type TraceId = [u8; 16];
/// What identifies a span; not all zero.
pub type SpanId = [u8; 8];

/// The flag by which who opens says that it records, and that others are to.
const SAMPLED: u8 = 1;

/// What a request tells of the trace that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Header `traceparent`.
    pub parent: Traceparent,
    /// Header `tracestate`.
    pub state: Option<Tracestate>,
}

impl TraceContext {
    /// Reads the values of all headers `traceparent` and `tracestate`. None without a valid `traceparent`, or with more than
    /// one (section 4.3).
    pub fn of_headers<'a>(
        mut parents: impl Iterator<Item = &'a str>,
        states: impl Iterator<Item = &'a str>,
    ) -> Option<Self> {
        let parent = parents.next()?.parse().ok()?;
        parents.next().is_none().then(|| Self {
            parent,
            state: Tracestate::of_headers(states),
        })
    }
}

/// The value of a header `traceparent` (section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span.
    pub parent: SpanId,
    /// Bit 0: the caller records.
    pub flags: u8,
}

impl Traceparent {
    /// Whether the caller records.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            u128::from_be_bytes(self.trace),
            u64::from_be_bytes(self.parent),
            self.flags
        )
    }
}

/// The text is no valid `traceparent`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("traceparent is not 00-<32 lower-case hex>-<16 hex>-<2 hex> with non-zero ids")]
pub struct NotTraceparent;

impl FromStr for Traceparent {
    type Err = NotTraceparent;

    fn from_str(text: &str) -> Result<Self, NotTraceparent> {
        let mut fields = text.split('-');
        let version = hex(fields.next(), 2)?;
        let trace = hex(fields.next(), 32)?;
        let parent = hex(fields.next(), 16)?;
        let flags = hex(fields.next(), 2)?;
        // A later version may append fields, version 00 may not, ff is no version.
        let trailing = fields.next().is_some();
        if version == 0xff || (version == 0 && trailing) || trace == 0 || parent == 0 {
            return Err(NotTraceparent);
        }
        Ok(Self {
            trace: trace.to_be_bytes(),
            parent: u64::try_from(parent)
                .map_err(|_| NotTraceparent)?
                .to_be_bytes(),
            flags: u8::try_from(flags).map_err(|_| NotTraceparent)?,
        })
    }
}

fn hex(field: Option<&str>, digits: usize) -> Result<u128, NotTraceparent> {
    field
        .filter(|field| field.len() == digits)
        .filter(|field| {
            field
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
        .and_then(|field| u128::from_str_radix(field, 16).ok())
        .ok_or(NotTraceparent)
}

/// The value of a header `tracestate` (section 3.3): others' words, which are passed on and not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracestate(Box<str>);

impl Tracestate {
    /// What is carried on at most, in bytes: whatever is longer is left out whole.
    const MOST: usize = 512;

    /// Several headers are one list (RFC 9110, 5.2). None without one, or with more than is carried on.
    fn of_headers<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut list = String::new();
        for line in lines.map(str::trim).filter(|it| !it.is_empty()) {
            if list.len() + line.len() >= Self::MOST + usize::from(list.is_empty()) {
                return None;
            }
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(line);
        }
        (!list.is_empty()).then(|| Self(list.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One end's part in a trace: a connection as this end sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub id: SpanId,
    /// The other end's span, if that has told.
    pub parent: Option<SpanId>,
    /// What others have said of the trace.
    pub state: Option<Tracestate>,
    /// Whether it is told.
    pub is_sampled: bool,
}

impl Span {
    /// The first of a trace, which decides whether the trace is among the share that is told.
    pub fn root(share: Share, mut random: impl FnMut() -> u64) -> Self {
        let (high, low) = (random(), random().max(1));
        let trace = u128::from(high) << 64 | u128::from(low);
        Self {
            trace: trace.to_be_bytes(),
            id: random().max(1).to_be_bytes(),
            parent: None,
            state: None,
            is_sampled: share.has(low),
        }
    }

    /// One that was called by another end, which has decided.
    pub fn child(of: &TraceContext, mut random: impl FnMut() -> u64) -> Self {
        Self {
            trace: of.parent.trace,
            id: random().max(1).to_be_bytes(),
            parent: Some(of.parent.parent),
            state: of.state.clone(),
            is_sampled: of.parent.is_sampled(),
        }
    }

    /// What whoever is called is told.
    pub fn context(&self) -> TraceContext {
        let parent = Traceparent {
            trace: self.trace,
            parent: self.id,
            flags: if self.is_sampled { SAMPLED } else { 0 },
        };
        TraceContext {
            parent,
            state: self.state.clone(),
        }
    }
}

/// A share of all traces, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// Whether it is none at all.
    pub fn is_none(self) -> bool {
        self.0 <= 0.0
    }

    /// Whether a trace of this random number is among it.
    fn has(self, random: u64) -> bool {
        let high = u32::try_from(random >> 32).expect("32 bits are left");
        f64::from(high) < self.0 * 2_f64.powi(32)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.parse().ok();
        let share = share.filter(|it| (0.0..=1.0).contains(it));
        let share = share.ok_or("not a share: give a number from 0 to 1, such as 0.01 for 1 %");
        Ok(share.map(Self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

    fn context(parents: &[&str], states: &[&str]) -> Option<TraceContext> {
        TraceContext::of_headers(parents.iter().copied(), states.iter().copied())
    }

    #[test]
    fn a_parent_is_read_and_written() {
        let parsed: Traceparent = TRACE.parse().unwrap();
        assert_eq!(
            (parsed.trace[0], parsed.parent[7], parsed.flags),
            (0x0a, 0xb7, 1)
        );
        assert_eq!(parsed.to_string(), TRACE);
        assert!(parsed.is_sampled());
        // Flags that are not known mean nothing.
        for (flags, is_sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let text = TRACE.replace("b7-01", &format!("b7-{flags}"));
            let parsed: Traceparent = text.parse().unwrap();
            assert_eq!(parsed.is_sampled(), is_sampled, "{text}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_this_one_goes() {
        let later = TRACE.replacen("00", "cc", 1);
        for text in [
            &later,
            &format!("{later}-what-the-future-will-be-like"),
            &format!("{later}-"),
        ] {
            let parsed: Traceparent = text.parse().unwrap();
            assert_eq!(parsed.to_string(), TRACE, "{text}");
        }
        // Something follows that is not behind a dash.
        assert_eq!(
            format!("{later}.what").parse::<Traceparent>(),
            Err(NotTraceparent)
        );
    }

    #[test]
    fn what_is_no_parent() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01-",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01.",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-1",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7",
            "ff-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
            "0-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
            ".0-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-00f067aa0ba902b7-01",
            "00-0af7651916cd43dd8448eb211c80319c-00F067AA0BA902B7-01",
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-0A",
            "00-0af7651916cd43dd8448eb211c80319.-00f067aa0ba902b7-01",
            "00-+af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
            "00-0af7-00f067aa0ba902b7-01",
            "00-0af7651916cd43dd8448eb211c80319c00-00f067aa0ba902b7-01",
            "00_0af7651916cd43dd8448eb211c80319c_00f067aa0ba902b7_01",
        ] {
            assert_eq!(bad.parse::<Traceparent>(), Err(NotTraceparent), "{bad}");
        }
    }

    #[test]
    fn one_parent_alone_and_the_state_only_with_it() {
        let state = |it: &Option<TraceContext>| {
            let state = it.as_ref().unwrap().state.as_ref();
            state.map(|it| it.as_str().to_owned())
        };
        assert_eq!(context(&[], &["a=1"]), None);
        assert_eq!(context(&["nonsense"], &["a=1"]), None);
        assert_eq!(context(&[TRACE, TRACE], &[]), None);
        assert_eq!(state(&context(&[TRACE], &[])), None);
        assert_eq!(state(&context(&[TRACE], &["", " "])), None);
        let lines = ["rojo=00f067aa0ba902b7", "", " congo=t61rcWkgMzE "];
        let joined = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";
        assert_eq!(state(&context(&[TRACE], &lines)).as_deref(), Some(joined));
        let (most, more) = ("x".repeat(512), "x".repeat(513));
        assert_eq!(state(&context(&[TRACE], &[&most])), Some(most));
        assert_eq!(state(&context(&[TRACE], &[&more])), None);
        let half = "x".repeat(256);
        assert_eq!(state(&context(&[TRACE], &[&half, &half])), None);
        assert_eq!(
            state(&context(&[TRACE], &[&half, &half[1..]]))
                .unwrap()
                .len(),
            512
        );
    }

    #[test]
    fn a_child_is_of_its_parents_trace_and_does_as_it_does() {
        let mut last = 0;
        let mut random = || {
            last += 1;
            last
        };
        let all: Share = "1".parse().unwrap();
        let root = Span::root(all, &mut random);
        assert!(root.is_sampled && root.parent.is_none());
        let told = root.context();
        let text = "00-00000000000000010000000000000002-0000000000000003-01";
        assert_eq!(told.parent.to_string(), text);
        let child = Span::child(&told, &mut random);
        assert_eq!((child.trace, child.parent), (root.trace, Some(root.id)));
        assert!(child.is_sampled && child.id != root.id);
        let unsampled = TRACE.replace("b7-01", "b7-00");
        let child = Span::child(&context(&[&unsampled], &["a=1"]).unwrap(), || 0);
        assert!(!child.is_sampled);
        // No id is all zero.
        assert_eq!(child.id, [0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(child.context().state, child.state);
        assert_ne!(Span::root(all, || 0).trace, [0; 16]);
    }

    #[test]
    fn a_share_is_that_of_all_traces() {
        let share = |text: &str| text.parse::<Share>();
        for bad in ["", "a", "-0.1", "1.01", "NaN", "inf", "1%"] {
            assert!(share(bad).unwrap_err().contains("0 to 1"), "{bad}");
        }
        let (none, tenth, all) = (share("0").unwrap(), share("0.1"), share("1").unwrap());
        assert!(none.is_none() && !all.is_none());
        assert!(!none.has(0) && all.has(u64::MAX));
        let step = u64::MAX / 1000;
        let tenth = tenth.unwrap();
        let taken = (0..1000).filter(|it| tenth.has(it * step)).count();
        assert!((99..=101).contains(&taken), "{taken}");
    }
}
