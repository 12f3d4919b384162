//! CORE: Istio's families of TCP metrics.

use std::sync::Arc;

use super::connection::Flag;
use super::page::{Kind, Page};
use super::totals::Totals;

/// What a scrape sees of all series.
pub(super) struct Read {
    pub(super) rows: Vec<Row>,
    pub(super) folded: u64,
}

/// A series.
pub(super) struct Row {
    pub(super) labels: Arc<str>,
    pub(super) flag: Flag,
    pub(super) open: u64,
    pub(super) totals: Totals,
}

/// Name, help, and what of a row it is. By Istio's names bytes are "sent" in the response, towards the opener, and "received"
/// in the request, at both ends alike.
type Column = (&'static str, &'static str, fn(&Totals) -> u64);

const STOOD: [Column; 4] = [
    (
        "istio_tcp_connections_opened",
        "The total number of TCP connections opened",
        |it| it.opened,
    ),
    (
        "istio_tcp_connections_closed",
        "The total number of TCP connections closed",
        |it| it.closed,
    ),
    (
        "istio_tcp_sent_bytes",
        "The size of total bytes sent during response in case of a TCP connection",
        |it| it.received,
    ),
    (
        "istio_tcp_received_bytes",
        "The size of total bytes received during request in case of a TCP connection",
        |it| it.sent,
    ),
];

impl Read {
    /// Writes Istio's families, and how bounded ours are.
    pub(super) fn write(&self, page: &mut Page) {
        let stood = || self.rows.iter().filter(|it| it.flag == Flag::None);
        for (name, help, value) in STOOD {
            let mut family = page.family(name, Kind::Counter, help);
            for row in stood() {
                family.sample(&row.labels, value(&row.totals));
            }
        }
        let help = "The total number of TCP connections that failed to establish";
        let mut family = page.family("istio_tcp_connections_failed", Kind::Counter, help);
        for row in self.rows.iter().filter(|it| it.flag != Flag::None) {
            family.sample(&row.labels, row.totals.failed);
        }
        let help = "The number of TCP connections that are open";
        let mut family = page.family("istio_tcp_sockets_open", Kind::Gauge, help);
        for row in stood() {
            family.sample(&row.labels, row.open);
        }
        let help = "Series of connections";
        page.single("mesh_series", Kind::Gauge, help, self.rows.len());
        let help = "Connections that are counted with others, there being too many series";
        page.single("mesh_series_folded", Kind::Counter, help, self.folded);
    }
}
