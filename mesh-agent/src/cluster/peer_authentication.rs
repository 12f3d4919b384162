//! `PeerAuthentication` as it is written -> what pods accept. What is not understood accepts the mesh alone.

use std::collections::BTreeMap;

use serde_json::Value;

use super::crd;
use super::field::{Invalid, PORT, created, key, parse};
use super::shape::{Unread, read};
use crate::model::{Labels, MtlsMode, PeerAuthentication};
use crate::policy::{Caveat, Effect};

/// Converts a peer authentication policy; what is wrong with its spec is among its caveats.
///
/// # Errors
/// It has no name.
pub fn peer_authentication(it: &crd::Policy) -> Result<PeerAuthentication, Invalid> {
    let mut caveats = Vec::new();
    let part = |name: &str| it.spec.get(name).unwrap_or(&Value::Null);
    let selector = match selector(part("selector")) {
        Ok(selector) => selector,
        Err(problem) => {
            // Whatever it accepts was not meant for all.
            caveats.push(problem.caveat(Effect::DeniesMore));
            return strict(it, Labels::new(), caveats);
        }
    };
    let unknown = match &it.spec {
        Value::Object(fields) => fields
            .keys()
            .find(|name| !["selector", "mtls", "portLevelMtls"].contains(&name.as_str()))
            .map(|name| format!("spec.{name}")),
        Value::Null => None,
        _ => Some("spec".to_owned()),
    };
    if let Some(field) = unknown {
        caveats.push(Caveat {
            field,
            problem: "there is no such field, correct its name".to_owned(),
            effect: Effect::DeniesMore,
        });
        return strict(it, selector, caveats);
    }
    let modes =
        mode("spec.mtls", part("mtls")).and_then(|mode| Ok((mode, ports(part("portLevelMtls"))?)));
    match modes {
        Ok((mode, ports)) => Ok(PeerAuthentication {
            key: key(&it.metadata)?,
            created: created(it.metadata.creation_timestamp.as_ref()),
            selector,
            mode,
            ports,
            caveats,
        }),
        Err(problem) => {
            caveats.push(problem.caveat(Effect::DeniesMore));
            strict(it, selector, caveats)
        }
    }
}

/// What is not understood could have asked for the mesh alone, at any port.
fn strict(
    it: &crd::Policy,
    selector: Labels,
    caveats: Vec<Caveat>,
) -> Result<PeerAuthentication, Invalid> {
    Ok(PeerAuthentication {
        key: key(&it.metadata)?,
        created: created(it.metadata.creation_timestamp.as_ref()),
        selector,
        mode: MtlsMode::Strict,
        ports: BTreeMap::new(),
        caveats,
    })
}

fn selector(written: &Value) -> Result<Labels, Unread> {
    if written.is_null() {
        return Ok(Labels::new());
    }
    let it: crd::WorkloadSelector = read("spec.selector", written)?;
    Ok(it.match_labels)
}

fn ports(written: &Value) -> Result<BTreeMap<u16, MtlsMode>, Unread> {
    const FIELD: &str = "spec.portLevelMtls";
    let mut ports = BTreeMap::new();
    if written.is_null() {
        return Ok(ports);
    }
    let it: BTreeMap<String, Value> = read(FIELD, written)?;
    for (text, written) in &it {
        let number = parse(FIELD, text, PORT)?;
        ports.insert(number, mode(&format!("{FIELD}.{text}"), written)?);
    }
    Ok(ports)
}

fn mode(field: &str, written: &Value) -> Result<MtlsMode, Unread> {
    if written.is_null() {
        return Ok(MtlsMode::Unset);
    }
    let it: crd::MutualTls = read(field, written)?;
    Ok(match it.mode {
        crd::Mode::Unset => MtlsMode::Unset,
        crd::Mode::Disable | crd::Mode::Permissive => MtlsMode::Permissive,
        crd::Mode::Strict => MtlsMode::Strict,
    })
}
