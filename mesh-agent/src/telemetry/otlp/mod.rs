//! EDGE: connections told to an OpenTelemetry collector: a span at each end, and a log record.
//!
//! `wire` has the messages and `convert` makes them of records, both CORE; `export` sends them. Whoever writes the access log
//! puts into a queue what is to be sent, so the path that carries connections has nothing to do with it.

mod convert;
mod export;
#[cfg(test)]
mod tests;
mod wire;

pub use convert::Resource;
pub use export::{Collector, Exporter, Exports, NotCollector};
