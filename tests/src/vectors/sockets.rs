//! What sockets are told before a packet leaves; the kernel runs these hooks for real sockets only, in the scenarios.

use mesh_common::HBONE_PORT;
use mesh_common::addr::Port;
use mesh_common::maps::Opener;
use mesh_common::packet::{Kind, Packet};
use mesh_common::steer;
use mesh_common::verdict::Outcome::{self, Pass, Policy, Strict};

use crate::frames::protocol;
use crate::rules::{INWARD, OUTWARD, PROVED, SERVER};
use crate::world::Who::{
    self, Enrolled, Judged, JudgedEnrolled, Neighbour, OnlyEgress, OnlyIngress, Plain, Remote,
    RemotePlain, Service, Stranger, Unruled, Untold,
};
use crate::world::{Family, Table, flow, plain};

#[test]
fn connect_refuses_what_the_packet_hooks_would() {
    let table = Table::cluster();
    let check = |from: Who, to: Who, port: u16, expect: Outcome| {
        for family in Family::BOTH {
            let (pod, dst) = (&table.pods[&from.ifindex()], to.ip(family).into());
            let told = steer::connect(&table, pod, &dst, Port::new(port));
            assert_eq!(told, expect, "{from:?} to {to:?} port {port}, {family:?}");
        }
    };
    check(Plain, RemotePlain, SERVER, Pass);
    check(Judged, RemotePlain, SERVER, Pass);
    check(Judged, RemotePlain, INWARD, Policy);
    check(OnlyIngress, RemotePlain, INWARD, Pass);
    check(Unruled, Unruled, SERVER, Pass);
    // What the kernel does not know whole is left to the packet hooks.
    for to in [Service, Untold, Stranger] {
        check(Unruled, to, SERVER, Pass);
    }
    check(JudgedEnrolled, Remote, SERVER, Pass);
    check(JudgedEnrolled, Remote, OUTWARD, Policy);
    check(JudgedEnrolled, Remote, HBONE_PORT, Pass);
    check(Unruled, Enrolled, HBONE_PORT, Pass);
    check(Unruled, RemotePlain, HBONE_PORT, Policy);
    // The neighbour's rules are known, too.
    check(Plain, Judged, SERVER, Pass);
    check(Plain, Judged, OUTWARD, Policy);
    check(Enrolled, JudgedEnrolled, PROVED, Pass);
    check(Plain, JudgedEnrolled, PROVED, Policy);
    check(Neighbour, JudgedEnrolled, SERVER, Policy);
    check(Enrolled, Who::Strict, SERVER, Pass);
    check(Plain, Who::Strict, SERVER, Strict);
    check(Enrolled, Who::PlainStrict, SERVER, Pass);
}

#[test]
fn a_process_of_the_node_is_judged_as_the_endpoint_of_a_service() {
    let mut table = Table::cluster();
    let family = Family::V4;
    let check = |table: &Table, from: Who, sender: Who, expect: bool| {
        let (src, dst) = (sender.at(family, 4000), Stranger.at(family, SERVER));
        let packet = Packet {
            src: src.ip().into(),
            dst: dst.ip().into(),
            src_port: Port::new(src.port()),
            dst_port: Port::new(dst.port()),
            protocol: protocol::TCP.into(),
            ..Packet::without_ip(Kind::Ip)
        };
        let at = from.ifindex();
        let passes = steer::to_node(table, at, &table.pods[&at], &packet);
        assert_eq!(passes, expect, "{sender:?} at {from:?}");
    };
    check(&table, Plain, Plain, true);
    check(&table, OnlyIngress, OnlyIngress, true);
    check(&table, OnlyEgress, OnlyEgress, true);
    check(&table, Judged, Judged, false);
    // An answer to the node, or judged on its way out.
    let key = flow(
        Judged.ifindex(),
        Judged.at(family, 4000),
        Stranger.at(family, SERVER),
    );
    table.flows.insert(key, plain(Opener::Node));
    check(&table, Judged, Judged, true);
    // `from_pod` lets nobody else out.
    check(&table, Unruled, Plain, true);
}
