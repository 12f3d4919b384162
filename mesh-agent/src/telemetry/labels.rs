//! CORE: Istio's labels of a connection, and one of ours: `mesh_carriage`.

use std::borrow::Cow;
use std::sync::Arc;

use super::connection::{Carriage, Direction, Flag};
use super::page::label;
use crate::model::{Identity, Pod, Service, Snapshot, Workload};

/// Of what is missing.
const UNKNOWN: &str = "unknown";
/// Of all for whom there is no series of their own.
const OTHER: &str = "other";

/// What the labels of a series are made of.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) direction: Direction,
    pub(super) carriage: Carriage,
    pub(super) flag: Flag,
    pub(super) source: End<'a>,
    pub(super) destination: End<'a>,
    pub(super) service: Option<&'a Service>,
}

/// One end of a connection.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) workload: Option<&'a Workload>,
    pub(super) identity: Option<&'a Identity>,
}

/// The labels, as a page has them; `cluster` is the name of this one.
pub(super) fn labels(it: &Subject<'_>, snapshot: &Snapshot, cluster: &str) -> String {
    let mut text = String::with_capacity(1024);
    label(&mut text, "reporter", it.direction.reporter());
    end(&mut text, &SOURCE, it.source, snapshot, cluster);
    let host = it.service.map(|it| host(snapshot, it));
    let of_service = [
        ("destination_service", host.as_deref()),
        (
            "destination_service_name",
            it.service.map(|it| &*it.key.name),
        ),
        (
            "destination_service_namespace",
            it.service.map(|it| &*it.key.namespace),
        ),
    ];
    for (name, value) in of_service {
        label(&mut text, name, value.unwrap_or(UNKNOWN));
    }
    end(&mut text, &DESTINATION, it.destination, snapshot, cluster);
    rest(&mut text, it.carriage, it.flag);
    text
}

/// The labels of all that have no series of their own.
pub(super) fn overflow(direction: Direction, carriage: Carriage, flag: Flag) -> String {
    let mut text = String::new();
    label(&mut text, "reporter", direction.reporter());
    for name in SOURCE.iter().chain(&DESTINATION) {
        label(&mut text, name, OTHER);
    }
    for name in [
        "destination_service",
        "destination_service_name",
        "destination_service_namespace",
    ] {
        label(&mut text, name, OTHER);
    }
    rest(&mut text, carriage, flag);
    text
}

fn rest(text: &mut String, carriage: Carriage, flag: Flag) {
    label(text, "request_protocol", "tcp");
    label(text, "response_flags", flag.name());
    label(
        text,
        "connection_security_policy",
        carriage.security_policy(),
    );
    label(text, "mesh_carriage", carriage.name());
}

/// Names of an end's labels, in the order of [`end`]'s values.
type Names = [&'static str; 10];

const SOURCE: Names = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_region",
    "source_zone",
];

const DESTINATION: Names = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_region",
    "destination_zone",
];

/// As ztunnel does: `app` and `version` are the canonical service and its revision.
fn end(text: &mut String, names: &Names, it: End<'_>, snapshot: &Snapshot, cluster: &str) {
    let pod = it.workload.and_then(|it| it.pod.as_deref());
    let name = pod.map(Pod::workload_name);
    let service = pod.map(canonical_service);
    let revision = pod.map(canonical_revision);
    let node = it.workload.and_then(|it| snapshot.node(it.node.as_ref()?));
    let values = [
        name,
        service,
        revision,
        pod.map(|it| &*it.key.namespace),
        None,
        service,
        revision,
        pod.map(|_| cluster),
        node.and_then(|it| it.region.as_deref()),
        node.and_then(|it| it.zone.as_deref()),
    ];
    let principal = it.identity.map(|it| Cow::Owned(it.to_string()));
    for (name, value) in names.iter().zip(values) {
        let value = if name.ends_with("_principal") {
            principal.as_deref()
        } else {
            value
        };
        label(text, name, value.unwrap_or(UNKNOWN));
    }
}

fn first<'a>(pod: &'a Pod, names: [&str; 3]) -> Option<&'a str> {
    let mut found = names.into_iter().filter_map(|it| pod.labels.get(it));
    found.find(|it| !it.is_empty()).map(String::as_str)
}

fn canonical_service(pod: &Pod) -> &str {
    let names = [
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ];
    first(pod, names).unwrap_or_else(|| pod.workload_name())
}

fn canonical_revision(pod: &Pod) -> &str {
    let names = [
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ];
    first(pod, names).unwrap_or("latest")
}

/// A service's name in the cluster's DNS.
pub(super) fn host(snapshot: &Snapshot, service: &Service) -> String {
    let (key, domain) = (&service.key, &snapshot.settings().cluster_domain);
    format!("{}.{}.svc.{domain}", key.name, key.namespace)
}

/// The service that a name in the cluster's DNS is of: `name.namespace.svc.<domain>`.
pub(crate) fn service_of(snapshot: &Snapshot, host: &str) -> Option<Arc<Service>> {
    let mut parts = host.splitn(3, '.');
    let (name, namespace) = (parts.next()?, parts.next()?);
    let key = crate::model::Key::new(namespace, name);
    snapshot.service(&key).cloned()
}
