//! `PeerAuthentication` and `AuthorizationPolicy`: what enrolled pods ask of those who connect to them.
//!
//! As with Istio this is about TCP only: nothing else carries an identity.

use std::net::IpAddr;

use super::{
    Action, AuthorizationPolicy, AuthorizationRule, Connection, IpProtocol, Layer, Match,
    PolicyKind, PolicyRef, Reason, Verdict,
};
use crate::model::{Identity, Snapshot, Workload};

/// Judges whether the peer has to prove who it is.
pub(super) fn authenticate(snapshot: &Snapshot, connection: &Connection<'_>) -> Verdict {
    let say = |reason| Verdict::new(Layer::PeerAuthentication, reason);
    let destination = match subject(connection) {
        Ok(destination) => destination,
        Err(reason) => return say(reason),
    };
    let port = connection.destination.port;
    if connection.source.identity.is_some() {
        return say(Reason::Authenticated);
    }
    if !destination.is_strict_at(port) {
        return say(Reason::Permissive);
    }
    let pod = destination.pod.as_deref();
    let policy = pod.and_then(|it| snapshot.peer_authentication_at(it, port));
    Verdict {
        policy: policy.map(|it| PolicyRef {
            kind: PolicyKind::PeerAuthentication,
            key: it.key.clone(),
        }),
        ..say(Reason::Strict)
    }
}

/// Judges by the policies about the destination: what one denies is denied, then what one allows is allowed; whatever is
/// left is allowed only if no policy allows anything.
pub(super) fn authorize(snapshot: &Snapshot, connection: &Connection<'_>) -> Verdict {
    let say = |reason| Verdict::new(Layer::AuthorizationPolicy, reason);
    let destination = match subject(connection) {
        Ok(destination) => destination,
        Err(reason) => return say(reason),
    };
    let view = View::new(connection);
    let (mut policies, mut caveats) = (0, 0);
    let (mut only, mut allowed) = (None, None);
    for policy in snapshot.authorization_policies_for(destination) {
        match policy.action {
            Action::Nothing => {}
            Action::Deny => {
                if let Some(rule) = policy.rules.iter().position(|it| view.is_denied_by(it)) {
                    let reason = match policy.rules[rule] {
                        AuthorizationRule::AllOf(_) => Reason::Denied,
                        AuthorizationRule::Undecided => Reason::NotUnderstood,
                    };
                    return by(policy, Some(rule), reason);
                }
            }
            Action::Allow => {
                policies += 1;
                caveats += usize::from(!policy.caveats.is_empty());
                only = Some(policy);
                let rule = || policy.rules.iter().position(|it| view.is_allowed_by(it));
                allowed = allowed.or_else(|| Some(by(policy, Some(rule()?), Reason::Allowed)));
            }
        }
    }
    let default = Reason::DefaultDeny { policies, caveats };
    match (allowed, policies, only) {
        (Some(verdict), _, _) => verdict,
        (None, 0, _) => say(Reason::NoPolicy),
        (None, 1, Some(policy)) => by(policy, None, default),
        (None, _, _) => say(default),
    }
}

/// The enrolled workload whose policies judge, or why there is nothing to judge.
fn subject<'a>(connection: &Connection<'a>) -> Result<&'a Workload, Reason> {
    let destination = connection.destination.workload.filter(|it| it.enrolled);
    let destination = destination.ok_or(Reason::NotEnrolled)?;
    if connection.protocol != IpProtocol::Tcp {
        return Err(Reason::NotTcp);
    }
    let port = &connection.destination.port;
    let pod = destination.pod.as_ref();
    if connection.from_node && pod.is_some_and(|it| it.probe_ports.contains(port)) {
        return Err(Reason::Probe);
    }
    Ok(destination)
}

fn by(policy: &AuthorizationPolicy, rule: Option<usize>, reason: Reason) -> Verdict {
    Verdict {
        policy: Some(PolicyRef {
            kind: PolicyKind::AuthorizationPolicy,
            key: policy.key.clone(),
        }),
        rule,
        ..Verdict::new(Layer::AuthorizationPolicy, reason)
    }
}

/// A connection as rules look at it.
struct View<'a> {
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    identity: Option<&'a Identity>,
}

impl<'a> View<'a> {
    fn new(connection: &Connection<'a>) -> Self {
        Self {
            source: connection.source.address.to_canonical(),
            destination: connection.destination.address.to_canonical(),
            port: connection.destination.port,
            identity: connection.source.identity,
        }
    }

    fn is_denied_by(&self, rule: &AuthorizationRule) -> bool {
        match rule {
            AuthorizationRule::AllOf(clauses) => self.fulfils(clauses),
            AuthorizationRule::Undecided => true,
        }
    }

    fn is_allowed_by(&self, rule: &AuthorizationRule) -> bool {
        match rule {
            AuthorizationRule::AllOf(clauses) => self.fulfils(clauses),
            AuthorizationRule::Undecided => false,
        }
    }

    fn fulfils(&self, clauses: &[Vec<Match>]) -> bool {
        let mut clauses = clauses.iter();
        clauses.all(|clause| clause.iter().any(|it| self.is(it)))
    }

    fn is(&self, it: &Match) -> bool {
        it.ports.hold(|port| *port == self.port)
            && it.destinations.hold(|net| net.contains(&self.destination))
            && it.is_from(self.identity, self.source)
    }
}

impl Match {
    /// Whether what it says of the peer holds for one with this identity, if any, and address (canonical).
    pub(super) fn is_from(&self, identity: Option<&Identity>, source: IpAddr) -> bool {
        // Without an identity there is no principal for any pattern to match, and the namespace is the empty one.
        let namespace = identity.map_or("", Identity::namespace);
        self.sources.hold(|net| net.contains(&source))
            && self.namespaces.hold(|it| it.matches(namespace))
            && self.service_accounts.hold(|account| {
                identity.is_some_and(|it| {
                    it.namespace() == account.namespace && it.service_account() == account.name
                })
            })
            && self.is_of_principal(identity)
    }

    fn is_of_principal(&self, identity: Option<&Identity>) -> bool {
        if self.principals.is_any() {
            return true;
        }
        let principal = identity.map(|it| {
            let (domain, namespace) = (it.trust_domain(), it.namespace());
            format!("{domain}/ns/{namespace}/sa/{}", it.service_account())
        });
        self.principals
            .hold(|pattern| principal.as_deref().is_some_and(|it| pattern.matches(it)))
    }
}
