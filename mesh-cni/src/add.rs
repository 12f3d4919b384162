//! EDGE: ADD.
//!
//! Reserve at the agent, wire, attach at the agent, and only then a result. What fails on the way leaves nothing.

use std::net::IpAddr;

use mesh_common::cni::{Request, Wiring};

use crate::agent::Session;
use crate::apply::{self, Kernel};
use crate::command::Command;
use crate::del;
use crate::error::Error;
use crate::netns::Netns;
use crate::plan::{End, Mac, plan};
use crate::request::Add;
use crate::result::CniResult;

/// Carries an ADD out.
pub(crate) fn run(add: Add) -> Result<CniResult, Error> {
    let netns = Netns::open(&add.netns)?;
    let mut session = Session::connect(Command::Add, &add.socket)?;
    let wiring = session.wiring(Request::Reserve {
        attachment: add.attachment.clone(),
        pod: add.pod.clone(),
        netns: add.netns.to_string_lossy().into_owned(),
        network: add.network.clone(),
    })?;
    check_wiring(&session, &wiring)?;
    let (mut kernel, ipv6) = Kernel::open(&netns, &wiring)?;
    let undos = apply::apply(&plan(&add.attachment, &wiring, ipv6), &mut kernel)?;
    let attached = session.done(Request::Attach {
        host_ifindex: kernel.host_index(),
        host_mac: Mac::of(&add.attachment, End::Host).0,
        mac: Mac::of(&add.attachment, End::Pod).0,
    });
    if let Err(error) = attached {
        // The device goes before the connection does: the address must not be given again while a route points here.
        apply::roll_back(&undos, &mut kernel);
        drop(session);
        if !matches!(error, Error::Refused { .. }) {
            // The agent may have attached without our hearing of it.
            del::release(&add.socket, &add.attachment);
        }
        return Err(error);
    }
    Ok(CniResult::of_add(
        add.version,
        &add.attachment,
        &add.netns,
        &wiring,
        add.dns,
    ))
}

/// The kernel takes any number of addresses and hardly any MTU amiss: what it would let through is caught here.
fn check_wiring(session: &Session, wiring: &Wiring) -> Result<(), Error> {
    let ipv6 = wiring.addresses.iter().filter(|a| a.is_ipv6()).count();
    let ipv4 = wiring.addresses.len() - ipv6;
    if ipv4 + ipv6 == 0 || ipv4 > 1 || ipv6 > 1 {
        let addresses = &wiring.addresses;
        let what = format!("reserved {addresses:?} instead of one address of a family or of each");
        return Err(session.nonsense(what));
    }
    let least = if wiring.addresses.iter().any(IpAddr::is_ipv6) {
        LEAST_MTU_V6
    } else {
        LEAST_MTU_V4
    };
    if !(least..=MOST_MTU).contains(&wiring.mtu) {
        let mtu = wiring.mtu;
        let what = format!("asked for an MTU of {mtu}, which is not in {least}..={MOST_MTU}");
        return Err(session.nonsense(what));
    }
    Ok(())
}

/// RFC 791 section 3.2, RFC 8200 section 5, and the kernel's bound for veth.
const LEAST_MTU_V4: u32 = 68;
const LEAST_MTU_V6: u32 = 1280;
const MOST_MTU: u32 = 65535;
