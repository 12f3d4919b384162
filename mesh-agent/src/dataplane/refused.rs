//! CORE: which open connections policy no longer allows.
//!
//! Judged as the programs judge the next packet of each, so that connections without a next packet end as well.

use mesh_common::addr::Addr;
use mesh_common::maps::{Flow, FlowKey, Pod, flags};
use mesh_common::policy::{Policies, seen_by_neighbour, still_allows};

/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// A TCP connection of a local pod that is no longer allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The pod's record of it.
    pub flow: FlowKey,
    /// The pod's own address.
    pub own: Addr,
}

/// A recorded flow, if it is a connection that policy no longer allows. `pod`: the local pod at an interface.
pub(super) fn refused<'a, P: Policies>(
    policies: &P,
    pod: impl Fn(u32) -> Option<&'a Pod>,
    key: &FlowKey,
    flow: &Flow,
) -> Option<Refused> {
    if key.protocol != TCP {
        // Without connection: the next packet is as good as the first one.
        return None;
    }
    let own_pod = pod(key.ifindex)?;
    let own = if key.peer.is_v4() {
        own_pod.addr4
    } else {
        own_pod.addr6
    };
    let refused = Refused { flow: *key, own };
    let judges = |pod: &Pod| pod.flags & (flags::INGRESS | flags::EGRESS) != 0;
    if judges(own_pod) && !still_allows(policies, own_pod, key, flow) {
        return Some(refused);
    }
    let neighbour = pod(flow.neighbour).filter(|it| flow.neighbour != 0 && judges(it))?;
    let (key, flow) = seen_by_neighbour(key, flow, own);
    (!still_allows(policies, neighbour, &key, &flow)).then_some(refused)
}

#[cfg(test)]
mod tests {
    use mesh_common::addr::Port;
    use mesh_common::maps::{CLASS_NODE, Direction, Opener, PolicyEntry, PolicyKey};

    use super::*;

    const WEB: u32 = 10;
    const CART: u32 = 11;
    const PLAIN: u32 = 12;

    /// Set 1 lets class 7 in at port 80, and class 8 if proved; set 2 lets nobody in and class 7 be reached at port 80.
    struct Rules;

    impl Policies for Rules {
        fn class(&self, _generation: u32, addr: &Addr) -> u32 {
            match std::net::IpAddr::from(*addr).to_string().as_str() {
                "10.0.0.7" => 7,
                "10.0.0.11" => 8,
                _ => 0,
            }
        }

        fn entry(&self, key: &PolicyKey) -> Option<&PolicyEntry> {
            let ingress = key.direction == Direction::Ingress as u8;
            let allowed = match (key.set, key.class) {
                (1 | 2, 7) => key.port == Port::new(80) && (key.set == 1) == ingress,
                (1, 8) => ingress && key.proof == 1,
                (1, CLASS_NODE) => ingress,
                _ => false,
            };
            allowed.then_some(&PolicyEntry { allow: 1 })
        }
    }

    fn pod(host: u8, policy: u32, flags: u32) -> Pod {
        Pod {
            addr4: [10, 0, 0, host].into(),
            addr6: Addr::NONE,
            workload: u32::from(host),
            flags,
            mac: [0; 6],
            host_mac: [0; 6],
            policy,
            generation: 1,
        }
    }

    /// Judges a flow of a pod with its own port, by its peer and neighbour.
    fn check(
        (pod_at, port): (u32, u16),
        (peer, peer_port): ([u8; 4], u16),
        (neighbour, opener): (u32, Opener),
        expect: bool,
    ) {
        let web = pod(10, 1, flags::ENROLLED | flags::INGRESS);
        let cart = pod(11, 2, flags::ENROLLED | flags::INGRESS | flags::EGRESS);
        let plain = pod(12, 0, 0);
        let pods = |index| match index {
            WEB => Some(&web),
            CART => Some(&cart),
            PLAIN => Some(&plain),
            _ => None,
        };
        let key = FlowKey {
            ifindex: pod_at,
            peer: peer.into(),
            pod_port: Port::new(port),
            peer_port: Port::new(peer_port),
            protocol: TCP,
        };
        let flow = Flow {
            neighbour,
            opener: opener as u32,
            revision: 3,
        };
        let judged = refused(&Rules, pods, &key, &flow);
        assert_eq!(judged.is_some(), expect, "{key:?} {flow:?}");
        if let Some(refused) = judged {
            assert_eq!(refused.flow, key);
            assert_eq!(refused.own, pods(pod_at).unwrap().addr4);
        }
        let datagrams = FlowKey {
            protocol: 17,
            ..key
        };
        assert_eq!(refused(&Rules, pods, &datagrams, &flow), None);
    }

    #[test]
    fn pods_judge_the_flows_that_they_are_judged_by() {
        let seven = ([10, 0, 0, 7], 4000);
        check((WEB, 80), seven, (0, Opener::Peer), false);
        check((WEB, 81), seven, (0, Opener::Peer), true);
        check((WEB, 80), ([10, 0, 0, 6], 4000), (0, Opener::Peer), true);
        check((WEB, 81), ([10, 0, 0, 6], 4000), (0, Opener::Node), false);
        // Egress of the one is not judged, that of the other is.
        check((WEB, 5000), ([10, 0, 0, 6], 80), (0, Opener::Pod), false);
        check((CART, 5000), ([10, 0, 0, 6], 80), (0, Opener::Pod), true);
        check((CART, 5000), ([10, 0, 0, 7], 80), (0, Opener::Pod), false);
        check((PLAIN, 80), ([10, 0, 0, 6], 80), (0, Opener::Peer), false);
        check((99, 80), ([10, 0, 0, 6], 80), (0, Opener::Peer), false);
    }

    #[test]
    fn a_short_cut_is_judged_by_both_pods_from_either_record() {
        let (web, cart) = ([10, 0, 0, 10], [10, 0, 0, 11]);
        // Cart may not reach web: neither record is of use.
        check((CART, 5000), (web, 80), (WEB, Opener::Pod), true);
        check((WEB, 80), (cart, 5000), (CART, Opener::Peer), true);
        // Web takes in nobody without proof, which a short cut is.
        let plain = ([10, 0, 0, 12], 5000);
        check((WEB, 80), plain, (PLAIN, Opener::Peer), true);
        check((PLAIN, 5000), (web, 80), (WEB, Opener::Pod), true);
        check((WEB, 80), (cart, 5000), (0, Opener::Peer), true);
        check((WEB, 80), (cart, 5000), (PLAIN, Opener::Peer), false);
        // Cart takes in nobody at all, whatever web says.
        check((WEB, 5000), (cart, 80), (CART, Opener::Pod), true);
        check((CART, 80), (web, 5000), (WEB, Opener::Peer), true);
        // A neighbour that is gone says nothing.
        check((WEB, 80), (cart, 5000), (99, Opener::Peer), false);
    }
}
