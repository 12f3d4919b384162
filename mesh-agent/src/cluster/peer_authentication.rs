//! `PeerAuthentication` as it is written -> what pods accept. What is not understood accepts the mesh alone.

use std::collections::BTreeMap;

use serde_json::Value;

use super::crd;
use super::field::{Invalid, PORT, created, key, parse};
use super::shape::{Unread, read};
use crate::model::{Labels, MtlsMode, PeerAuthentication};
use crate::policy::Effect;

/// Converts a peer authentication policy; what is wrong with its spec is among its caveats.
///
/// # Errors
/// It has no name.
pub fn peer_authentication(it: &crd::Policy) -> Result<PeerAuthentication, Invalid> {
    // What is not understood could have asked for the mesh alone, at any port, and what it accepts was not meant for all.
    let mut policy = PeerAuthentication {
        key: key(&it.metadata)?,
        created: created(it.metadata.creation_timestamp.as_ref()),
        selector: Labels::new(),
        mode: MtlsMode::Strict,
        ports: BTreeMap::new(),
        caveats: Vec::new(),
    };
    if let Err(problem) = fill(&mut policy, &it.spec) {
        policy.caveats.push(problem.caveat(Effect::DeniesMore));
    }
    Ok(policy)
}

/// Takes over what a spec says: the selector if that alone is understood, all of it or none of the rest.
fn fill(policy: &mut PeerAuthentication, spec: &Value) -> Result<(), Unread> {
    let part = |name: &str| spec.get(name).unwrap_or(&Value::Null);
    policy.selector = selector(part("selector"))?;
    if let Some(field) = unknown(spec) {
        let problem = "there is no such field, correct its name".to_owned();
        return Err(Unread { field, problem });
    }
    let mode = mode("spec.mtls", part("mtls"))?;
    policy.ports = ports(part("portLevelMtls"))?;
    policy.mode = mode;
    Ok(())
}

/// A field that a spec does not have.
fn unknown(spec: &Value) -> Option<String> {
    match spec {
        Value::Object(fields) => fields
            .keys()
            .find(|name| !["selector", "mtls", "portLevelMtls"].contains(&name.as_str()))
            .map(|name| format!("spec.{name}")),
        Value::Null => None,
        _ => Some("spec".to_owned()),
    }
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
