//! `AuthorizationPolicy` as it is written -> rules, as far as they are about L4.
//!
//! A rule that asks for what only HTTP tells, or that is not understood, allows nothing where it would allow and is made
//! broader where it would deny.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::crd::{self, Condition, Operation, Rule, Source};
use super::field::{Invalid, PORT, key, not_mapped};
use super::shape::{Unread, note, read, subjects};
use crate::model::Key;
use crate::policy::{
    Action, AuthorizationPolicy, AuthorizationRule, Caveat, Effect, Match, Pattern, Selector,
    ServiceAccount, Terms,
};

/// Converts an authorization policy; what is wrong with its spec is among its caveats.
///
/// # Errors
/// It has no name.
pub fn authorization_policy(it: &crd::Policy) -> Result<AuthorizationPolicy, Invalid> {
    let key = key(&it.metadata)?;
    let mut caveats = Vec::new();
    let mut policy = AuthorizationPolicy {
        key,
        selector: Selector::everything(),
        action: Action::Nothing,
        rules: Vec::new(),
        caveats: Vec::new(),
    };
    if let Some(caveat) = exemption(&it.metadata, &it.spec) {
        policy.caveats.push(caveat);
        return Ok(policy);
    }
    let selected = it.spec.get("selector").unwrap_or(&Value::Null);
    policy.selector = subjects(selector(selected), &mut caveats);
    match spec(&it.spec) {
        Ok((action, caveat, rules)) => {
            caveats.extend(caveat);
            let rules = rules.iter().enumerate();
            let rules = rules.map(|(i, it)| rule(&policy.key, action, i, it, &mut caveats));
            policy.rules = rules.collect();
            policy.action = action;
        }
        Err(problem) => {
            caveats.push(problem.caveat(Effect::DeniesAll));
            policy.rules = vec![AuthorizationRule::Undecided];
            policy.action = Action::Deny;
        }
    }
    policy.caveats = caveats;
    Ok(policy)
}

/// Why a policy is not to be enforced here at all.
fn exemption(meta: &ObjectMeta, spec: &Value) -> Option<Caveat> {
    let nothing = |field: &str, problem: &str| {
        Some(Caveat {
            field: field.to_owned(),
            problem: problem.to_owned(),
            effect: Effect::Nothing,
        })
    };
    let annotations = meta.annotations.as_ref();
    let dry_run = annotations.and_then(|it| it.get("istio.io/dry-run"));
    if dry_run.is_some_and(|it| matches!(&**it, "1" | "t" | "T" | "true" | "TRUE" | "True")) {
        let field = "metadata.annotations[istio.io/dry-run]";
        return nothing(field, "the policy is only tried");
    }
    target_of(spec).and_then(|field| nothing(field, WAYPOINT))
}

const WAYPOINT: &str = "the policy is for a waypoint or a gateway, which enforces it";

/// The field that names a waypoint or gateway, if the spec has one.
fn target_of(spec: &Value) -> Option<&'static str> {
    let is_set = |it: Option<&Value>| match it {
        Some(Value::Array(it)) => !it.is_empty(),
        Some(it) => !it.is_null(),
        None => false,
    };
    [
        ("targetRef", "spec.targetRef"),
        ("targetRefs", "spec.targetRefs"),
    ]
    .into_iter()
    .find_map(|(name, field)| is_set(spec.get(name)).then_some(field))
}

fn selector(written: &Value) -> Result<Selector, Unread> {
    if written.is_null() {
        return Ok(Selector::everything());
    }
    let it: crd::WorkloadSelector = read("spec.selector", written)?;
    Ok(Selector::of_labels(it.match_labels))
}

/// The action, what is to be said about it, and the rules as they are written.
fn spec(written: &Value) -> Result<(Action, Option<Caveat>, Vec<Value>), Unread> {
    let it: crd::AuthorizationPolicySpec = match written {
        Value::Null => crd::AuthorizationPolicySpec::default(),
        it => read("spec", it)?,
    };
    let caveat = |problem: &str, effect| {
        Some(Caveat {
            field: "spec.action".to_owned(),
            problem: problem.to_owned(),
            effect,
        })
    };
    let (action, caveat) = match it.action.as_deref() {
        None | Some("" | "ALLOW") => (Action::Allow, None),
        Some("DENY") => (Action::Deny, None),
        Some("AUDIT") => {
            let caveat = caveat("AUDIT is not supported", Effect::Nothing);
            (Action::Nothing, caveat)
        }
        // Who would allow what matches cannot be asked, so nobody allows it.
        Some("CUSTOM") => {
            let problem = "CUSTOM is not supported, what its rules match is denied";
            (Action::Deny, caveat(problem, Effect::DeniesMore))
        }
        Some(other) => {
            return Err(Unread::from(Invalid {
                field: "spec.action".to_owned(),
                value: other.to_owned(),
                expected: "ALLOW or DENY",
            }));
        }
    };
    Ok((action, caveat, it.rules.unwrap_or_default()))
}

fn rule(
    of: &Key,
    action: Action,
    index: usize,
    written: &Value,
    caveats: &mut Vec<Caveat>,
) -> AuthorizationRule {
    let path = format!("spec.rules[{index}]");
    let effect = match action {
        Action::Allow => Effect::AllowsLess,
        Action::Deny => Effect::DeniesMore,
        Action::Nothing => Effect::Nothing,
    };
    let mut beyond = Vec::new();
    let clauses = read(&path, written).and_then(|it| clauses(of, &path, it, &mut beyond));
    let is_beyond = !beyond.is_empty();
    for field in beyond {
        let problem = "only a waypoint knows this".to_owned();
        note(
            caveats,
            Caveat {
                field,
                problem,
                effect,
            },
        );
    }
    match clauses {
        Ok(_) if is_beyond && action == Action::Allow => AuthorizationRule::Undecided,
        Ok(clauses) => AuthorizationRule::AllOf(clauses),
        Err(problem) => {
            note(caveats, problem.caveat(effect));
            AuthorizationRule::Undecided
        }
    }
}

/// What a rule asks for at L4; paths of what it asks for beyond are added to `beyond`.
fn clauses(
    of: &Key,
    path: &str,
    it: Rule,
    beyond: &mut Vec<String>,
) -> Result<Vec<Vec<Match>>, Unread> {
    let mut clauses = Vec::new();
    if let Some(list) = it.from {
        let path = format!("{path}.from");
        clauses.push(any(&path, list, |path, it| {
            let it = it.source.unwrap_or_default();
            source(of, &format!("{path}.source"), it, beyond)
        })?);
    }
    if let Some(list) = it.to {
        let path = format!("{path}.to");
        clauses.push(any(&path, list, |path, it| {
            let it = it.operation.unwrap_or_default();
            operation(&format!("{path}.operation"), it, beyond)
        })?);
    }
    for (i, it) in it.when.into_iter().flatten().enumerate() {
        clauses.push(vec![condition(&format!("{path}.when[{i}]"), it, beyond)?]);
    }
    Ok(clauses)
}

fn any<T>(
    path: &str,
    list: Vec<T>,
    mut convert: impl FnMut(&str, T) -> Result<Match, Unread>,
) -> Result<Vec<Match>, Unread> {
    if list.is_empty() {
        return Err(invalid(path, "", "at least one element, or leave the field out").into());
    }
    let list = list.into_iter().enumerate();
    list.map(|(i, it)| convert(&format!("{path}[{i}]"), it))
        .collect()
}

fn source(of: &Key, path: &str, it: Source, beyond: &mut Vec<String>) -> Result<Match, Unread> {
    not_empty(path, it.is_empty())?;
    add_beyond(path, &it.beyond(), beyond);
    Ok(Match {
        principals: terms(
            path,
            ("principals", it.principals),
            ("notPrincipals", it.not_principals),
            principal,
        )?,
        namespaces: terms(
            path,
            ("namespaces", it.namespaces),
            ("notNamespaces", it.not_namespaces),
            pattern,
        )?,
        service_accounts: terms(
            path,
            ("serviceAccounts", it.service_accounts),
            ("notServiceAccounts", it.not_service_accounts),
            |it| service_account(&of.namespace, it),
        )?,
        sources: terms(
            path,
            ("ipBlocks", it.ip_blocks),
            ("notIpBlocks", it.not_ip_blocks),
            address,
        )?,
        ..Match::default()
    })
}

fn operation(path: &str, it: Operation, beyond: &mut Vec<String>) -> Result<Match, Unread> {
    not_empty(path, it.is_empty())?;
    add_beyond(path, &it.beyond(), beyond);
    Ok(Match {
        ports: terms(path, ("ports", it.ports), ("notPorts", it.not_ports), port)?,
        ..Match::default()
    })
}

fn condition(path: &str, it: Condition, beyond: &mut Vec<String>) -> Result<Match, Unread> {
    let Condition {
        key,
        values,
        not_values,
    } = it;
    not_empty(path, values.is_empty() && not_values.is_empty())?;
    let (values, not_values) = (("values", values), ("notValues", not_values));
    let mut it = Match::default();
    match &*key {
        "source.ip" => it.sources = terms(path, values, not_values, address)?,
        "source.namespace" => it.namespaces = terms(path, values, not_values, pattern)?,
        "source.principal" => it.principals = terms(path, values, not_values, principal)?,
        "destination.ip" => it.destinations = terms(path, values, not_values, address)?,
        "destination.port" => it.ports = terms(path, values, not_values, port)?,
        other => beyond.push(format!("{path}.key ({other})")),
    }
    Ok(it)
}

fn add_beyond(path: &str, fields: &[&str], beyond: &mut Vec<String>) {
    beyond.extend(fields.iter().map(|it| format!("{path}.{it}")));
}

fn not_empty(path: &str, is_empty: bool) -> Result<(), Unread> {
    if is_empty {
        return Err(invalid(path, "", "at least one field that asks for something").into());
    }
    Ok(())
}

/// A field's name and what it holds.
type Written = (&'static str, Vec<String>);

/// Converts a list and its negation, given with the names of their fields; the error names the element.
fn terms<T>(
    path: &str,
    any_of: Written,
    none_of: Written,
    convert: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<Terms<T>, Unread> {
    let list = |(name, texts): Written| {
        let texts = texts.iter().enumerate();
        texts
            .map(|(i, text)| {
                let read = convert(text);
                read.map_err(|it| invalid(&format!("{path}.{name}[{i}]"), text, it))
            })
            .collect::<Result<_, _>>()
    };
    Ok(Terms {
        any_of: list(any_of)?,
        none_of: list(none_of)?,
    })
}

fn invalid(path: &str, value: &str, expected: &'static str) -> Invalid {
    Invalid {
        field: path.to_owned(),
        value: value.to_owned(),
        expected,
    }
}

fn pattern(text: &str) -> Result<Pattern, &'static str> {
    match text {
        "" => Err("a name, prefix*, *suffix or *"),
        it => Ok(it.into()),
    }
}

/// Istio writes principals without their scheme; with it they mean the same.
fn principal(text: &str) -> Result<Pattern, &'static str> {
    pattern(text.strip_prefix("spiffe://").unwrap_or(text))
}

fn service_account(own: &str, text: &str) -> Result<ServiceAccount, &'static str> {
    let (namespace, name) = text.split_once('/').unwrap_or((own, text));
    let is_name = |it: &str| !it.is_empty() && !it.contains(['/', '*']);
    if !is_name(namespace) || !is_name(name) {
        return Err("service-account or namespace/service-account, without wildcards");
    }
    Ok(ServiceAccount {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn address(text: &str) -> Result<IpNet, &'static str> {
    let expected = "an IP address or prefix such as 10.1.2.3 or fd00:1::/64";
    let it = match IpAddr::from_str(text) {
        Ok(address) => IpNet::from(address),
        Err(_) => IpNet::from_str(text).map_err(|_| expected)?,
    };
    not_mapped("", text, it).map_err(|it| it.expected)
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().ok().filter(|it| *it != 0).ok_or(PORT)
}
