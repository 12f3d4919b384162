//! What must hold after every step: pure functions of what was collected about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_tests::holdings::Holdings;

use crate::traffic::Class;

/// Descriptors that an agent may have beyond those it had: tunnels and connections that are about to end.
const SPARE_DESCRIPTORS: usize = 64;

/// What became of a pair's connections in a step.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) who: String,
    pub(crate) class: Class,
    /// How streams ended that were open.
    pub(crate) broken: Vec<String>,
    /// How often the denied port answered.
    pub(crate) trespassed: usize,
}

/// Everything that is ours on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) node: String,
    pub(crate) holdings: Holdings,
    /// Policy rules of both families.
    pub(crate) rules: String,
    /// Tables of the packet filter.
    pub(crate) tables: String,
    /// Programs at devices that are not one of each kind, problems that the agent tells, and connections between pods of one
    /// node that a process of the node is in.
    pub(crate) problems: Vec<String>,
    pub(crate) descriptors: usize,
}

/// Streams that ended although the fault spares their class, and connections that policy denies.
pub(crate) fn of_traffic(told: &[Told], spares: impl Fn(Class) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for Told {
        who,
        class,
        broken: ends,
        trespassed,
    } in told
    {
        if !ends.is_empty() && spares(*class) {
            broken.push(format!(
                "open streams that the fault does not touch ended, {who}: {ends:?}"
            ));
        }
        if *trespassed > 0 {
            broken.push(format!(
                "policy denies it, {trespassed} times it was allowed: {who}"
            ));
        }
    }
    broken
}

/// Frames that show what enrolled pods say to each other, each told as text; and whether what plain pods say was heard.
pub(crate) fn of_the_wire(plaintext: &[String], is_heard: bool) -> Vec<String> {
    let shown = plaintext.iter().take(5);
    let shown = shown.map(|it| format!("in plaintext: {it}"));
    let deaf = (!is_heard).then(|| "the capture hears nothing".to_owned());
    shown.chain(deaf).collect()
}

/// Addresses that two pods have.
pub(crate) fn of_addresses(pods: &[(String, Vec<IpAddr>)]) -> Vec<String> {
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let mut twice = Vec::new();
    for (pod, addresses) in pods {
        for address in addresses {
            if let Some(other) = owners.insert(*address, pod) {
                twice.push(format!("{address} was given to {other} and to {pod}"));
            }
        }
    }
    twice
}

/// What a node holds more or less than before.
pub(crate) fn of_a_node(before: &Held, after: &Held) -> Vec<String> {
    let mut found = after.problems.clone();
    let (was, is) = (&before.holdings, &after.holdings);
    found.extend(difference("device", &was.devices, &is.devices));
    found.extend(difference("file or pin", &was.files, &is.files));
    for (what, was, is) in [
        ("route", &was.routes, &is.routes),
        ("rule", &before.rules, &after.rules),
        ("line of a table", &before.tables, &after.tables),
    ] {
        found.extend(difference(what, &lines(was), &lines(is)));
    }
    if was.pods != is.pods {
        found.push(format!(
            "the kernel knew {} pods, now {}",
            was.pods, is.pods
        ));
    }
    if after.descriptors > before.descriptors + SPARE_DESCRIPTORS {
        let (was, is) = (before.descriptors, after.descriptors);
        found.push(format!("the agent had {was} descriptors, now {is}"));
    }
    let node = &after.node;
    found.iter().map(|it| format!("{node}: {it}")).collect()
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(|it| it.trim().to_owned()).collect()
}

fn difference(what: &str, was: &BTreeSet<String>, is: &BTreeSet<String>) -> Vec<String> {
    let gone = was.difference(is).map(|it| format!("{what} gone: {it}"));
    let left = is.difference(was).map(|it| format!("{what} left: {it}"));
    gone.chain(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held {
            node: "n1".to_owned(),
            holdings: Holdings {
                devices: BTreeSet::from(["eth0".to_owned()]),
                routes: "a\nb\n".to_owned(),
                pods: 2,
                files: BTreeSet::new(),
            },
            rules: "0: from all".to_owned(),
            tables: String::new(),
            problems: Vec::new(),
            descriptors: 40,
        }
    }

    #[test]
    fn a_node_is_compared_whole() {
        let check = |change: fn(&mut Held), found: &[&str]| {
            let mut after = held();
            change(&mut after);
            assert_eq!(of_a_node(&held(), &after), found);
        };
        check(|_| (), &[]);
        check(|it| it.descriptors += SPARE_DESCRIPTORS, &[]);
        check(
            |it| it.descriptors = 200,
            &["n1: the agent had 40 descriptors, now 200"],
        );
        check(
            |it| it.holdings.routes = "b\nc\n".to_owned(),
            &["n1: route gone: a", "n1: route left: c"],
        );
        check(
            |it| it.holdings.pods = 3,
            &["n1: the kernel knew 2 pods, now 3"],
        );
        check(|it| it.rules.clear(), &["n1: rule gone: 0: from all"]);
        check(
            |it| it.problems.push("no certificate".to_owned()),
            &["n1: no certificate"],
        );
    }

    #[test]
    fn a_stream_is_spared_or_not() {
        let told = |class, trespassed| Told {
            who: "it".to_owned(),
            class,
            broken: vec!["reset".to_owned()],
            trespassed,
        };
        let near = |class| class == Class::Near;
        assert_eq!(of_traffic(&[told(Class::Near, 0)], near).len(), 1);
        assert_eq!(of_traffic(&[told(Class::Far, 0)], near).len(), 0);
        assert_eq!(of_traffic(&[told(Class::Far, 2)], near).len(), 1);
    }

    #[test]
    fn an_address_has_one_owner() {
        let pod = |name: &str, ip: &str| (name.to_owned(), vec![ip.parse().unwrap()]);
        let check = |pods: &[_], twice| assert_eq!(of_addresses(pods).len(), twice);
        check(&[pod("a", "10.0.0.2"), pod("b", "10.0.0.3")], 0);
        check(&[pod("a", "10.0.0.2"), pod("b", "10.0.0.2")], 1);
    }
}
