//! CORE: which fields of an object the agent has a use for. Everything else is dropped while it is read, so that a cluster
//! of many pods costs what the agent knows of them.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What is kept of a value. A list keeps the same of each of its elements; what is neither list nor object is kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep {
    /// All of it.
    All,
    /// These fields.
    Fields(&'static [(&'static str, Keep)]),
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Self::All => Value::deserialize(deserializer),
            Self::Fields(fields) => deserializer.deserialize_any(Fields(fields)),
        }
    }
}

struct Fields(&'static [(&'static str, Keep)]);

impl<'de> Visitor<'de> for Fields {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            match self.0.iter().find(|(known, _)| *known == name) {
                Some((_, keep)) => {
                    kept.insert(name.into_owned(), map.next_value_seed(*keep)?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(it) = seq.next_element_seed(Keep::Fields(self.0))? {
            kept.push(it);
        }
        Ok(Value::Array(kept))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, it: bool) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_i64<E: Error>(self, it: i64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_u64<E: Error>(self, it: u64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_f64<E: Error>(self, it: f64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_str<E: Error>(self, it: &str) -> Result<Value, E> {
        Ok(it.into())
    }
}

use Keep::{All, Fields as Of};

pub(super) const NAMESPACE: Keep = Of(&[("metadata", Of(&[("labels", All), ("name", All)]))]);

pub(super) const NODE: Keep = Of(&[
    (
        "metadata",
        Of(&[
            ("name", All),
            (
                "labels",
                Of(&[
                    ("topology.kubernetes.io/region", All),
                    ("topology.kubernetes.io/zone", All),
                ]),
            ),
        ]),
    ),
    ("spec", Of(&[("podCIDR", All), ("podCIDRs", All)])),
    ("status", Of(&[("addresses", All)])),
]);

pub(super) const PEER_AUTHENTICATION: Keep = Of(&[
    (
        "metadata",
        Of(&[
            ("name", All),
            ("namespace", All),
            ("creationTimestamp", All),
        ]),
    ),
    ("spec", All),
]);

const NAMED: (&str, Keep) = ("metadata", Of(&[("name", All), ("namespace", All)]));

pub(super) const NETWORK_POLICY: Keep = Of(&[NAMED, ("spec", All)]);

pub(super) const AUTHORIZATION_POLICY: Keep = Of(&[
    (
        "metadata",
        Of(&[
            ("name", All),
            ("namespace", All),
            ("annotations", Of(&[("istio.io/dry-run", All)])),
        ]),
    ),
    ("spec", All),
]);

pub(super) const SERVICE: Keep = Of(&[
    NAMED,
    (
        "spec",
        Of(&[
            ("clusterIP", All),
            ("clusterIPs", All),
            ("internalTrafficPolicy", All),
            (
                "ports",
                Of(&[
                    ("name", All),
                    ("port", All),
                    ("protocol", All),
                    ("targetPort", All),
                ]),
            ),
            ("publishNotReadyAddresses", All),
            ("sessionAffinity", All),
            ("type", All),
        ]),
    ),
]);

pub(super) const ENDPOINT_SLICE: Keep = Of(&[
    (
        "metadata",
        Of(&[
            ("name", All),
            ("namespace", All),
            ("labels", Of(&[("kubernetes.io/service-name", All)])),
        ]),
    ),
    ("addressType", All),
    (
        "endpoints",
        Of(&[
            ("addresses", All),
            ("conditions", All),
            ("hints", All),
            ("nodeName", All),
            (
                "targetRef",
                Of(&[("kind", All), ("name", All), ("namespace", All)]),
            ),
        ]),
    ),
    (
        "ports",
        Of(&[("name", All), ("port", All), ("protocol", All)]),
    ),
]);

pub(super) const POD: Keep = Of(&[
    (
        "metadata",
        Of(&[
            ("annotations", Of(&[("sidecar.istio.io/status", All)])),
            ("creationTimestamp", All),
            ("labels", All),
            ("name", All),
            ("namespace", All),
            (
                "ownerReferences",
                Of(&[("controller", All), ("kind", All), ("name", All)]),
            ),
            ("uid", All),
        ]),
    ),
    (
        "spec",
        Of(&[
            ("containers", CONTAINERS),
            ("hostNetwork", All),
            ("initContainers", CONTAINERS),
            ("nodeName", All),
            ("serviceAccount", All),
            ("serviceAccountName", All),
        ]),
    ),
    (
        "status",
        Of(&[
            ("conditions", Of(&[("status", All), ("type", All)])),
            ("phase", All),
            ("podIP", All),
            ("podIPs", All),
        ]),
    ),
]);

const CONTAINERS: Keep = Of(&[
    (
        "lifecycle",
        Of(&[("postStart", HANDLER), ("preStop", HANDLER)]),
    ),
    ("livenessProbe", HANDLER),
    (
        "ports",
        Of(&[("containerPort", All), ("name", All), ("protocol", All)]),
    ),
    ("readinessProbe", HANDLER),
    ("startupProbe", HANDLER),
]);

/// What the kubelet connects to.
const HANDLER: Keep = Of(&[("grpc", TARGET), ("httpGet", TARGET), ("tcpSocket", TARGET)]);
const TARGET: Keep = Of(&[("host", All), ("port", All)]);
