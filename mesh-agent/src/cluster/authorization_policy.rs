//! `AuthorizationPolicy` as it is written -> rules, as far as they are about L4.
//!
//! A rule that asks for what only HTTP tells, or that is not understood, allows nothing where it would allow and is made
//! broader where it would deny.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::authorization_rule::clauses;
use super::crd;
use super::field::{Invalid, key};
use super::shape::{Unread, note, read, subjects};
use crate::model::Key;
use crate::policy::{Action, AuthorizationPolicy, AuthorizationRule, Caveat, Effect, Selector};

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
