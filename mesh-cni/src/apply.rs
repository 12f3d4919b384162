//! EDGE: carries a plan out, and takes it back.

use std::io;

use mesh_common::cni::Wiring;

use crate::error::Error;
use crate::netlink::Netlink;
use crate::netns::{self, Netns};
use crate::plan::{End, Ipv6, Step, Undo};

/// What carries steps out: the kernel, or a test.
pub trait Carrier {
    /// Carries one step out.
    fn apply(&mut self, step: &Step) -> Result<(), Error>;
    /// Takes one back; what is gone already is fine.
    fn undo(&mut self, undo: &Undo) -> Result<(), Error>;
}

/// Carries every step out, and returns what takes them back, in the order of the steps.
///
/// # Errors
/// The error of the first step that fails, after everything before it is taken back.
pub fn apply(steps: &[Step], carrier: &mut impl Carrier) -> Result<Vec<Undo>, Error> {
    let mut undos = Vec::new();
    for step in steps {
        if let Err(error) = carrier.apply(step) {
            roll_back(&undos, carrier);
            return Err(error);
        }
        undos.extend(step.undo());
    }
    Ok(undos)
}

/// Takes everything back, last step first. What fails is told on standard error, as there is a first error to return.
pub fn roll_back(undos: &[Undo], carrier: &mut impl Carrier) {
    for undo in undos.iter().rev() {
        if let Err(error) = carrier.undo(undo) {
            crate::warn(&error);
        }
    }
}

/// The two namespaces of one pod's wiring.
#[derive(Debug)]
pub struct Kernel<'a> {
    netns: &'a Netns,
    host: Netlink,
    pod: Netlink,
    /// Indices of the pair, 0 until it is created.
    host_index: u32,
    pod_index: u32,
}

impl<'a> Kernel<'a> {
    /// Opens both namespaces, and makes sure that the pod's can hold the addresses.
    ///
    /// # Errors
    /// [`Error::NoIpv6`] for an IPv6 address without IPv6, [`Error::Netns`] and [`Error::Kernel`].
    pub fn open(netns: &'a Netns, wiring: &Wiring) -> Result<(Self, Ipv6), Error> {
        let (pod, disabled) = netns.inside(|| {
            let disabled = netns::ipv6_setting("default", "disable_ipv6");
            (Netlink::open(), disabled)
        })?;
        let disabled = disabled.map_err(|source| Error::Kernel {
            what: "read net.ipv6.conf.default.disable_ipv6 of the pod",
            source,
        })?;
        let wanted = wiring.addresses.iter().any(std::net::IpAddr::is_ipv6);
        let ipv6 = match disabled.as_deref() {
            None if wanted => {
                let what = "the kernel has no IPv6";
                return Err(Error::NoIpv6 { what });
            }
            None => Ipv6::Absent,
            Some("1") if wanted => {
                let what = "net.ipv6.conf.default.disable_ipv6 is 1 in the pod's namespace";
                return Err(Error::NoIpv6 { what });
            }
            Some(_) => Ipv6::Present,
        };
        let kernel = Self {
            netns,
            host: opened(Netlink::open())?,
            pod: opened(pod)?,
            host_index: 0,
            pod_index: 0,
        };
        Ok((kernel, ipv6))
    }

    /// Index of the host's end, once the plan is carried out.
    pub fn host_index(&self) -> u32 {
        self.host_index
    }

    fn end(&mut self, end: End) -> (&mut Netlink, u32) {
        match end {
            End::Host => (&mut self.host, self.host_index),
            End::Pod => (&mut self.pod, self.pod_index),
        }
    }

    fn step(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::RemoveLeftover { host } => self.remove_leftover(host),
            Step::CreateVeth(veth) => self.host.create_veth(veth, self.netns.file()),
            Step::FindVeth { host, pod } => {
                self.host_index = index(&mut self.host, host)?;
                self.pod_index = index(&mut self.pod, pod)?;
                Ok(())
            }
            Step::NoLinkLocal(end) => {
                let (netlink, index) = self.end(*end);
                netlink.set_no_link_local(index)
            }
            Step::IgnoreAdvertisements { host } => netns::set_ipv6_setting(host, "accept_ra", "0"),
            Step::LoopbackUp => self.pod.set_up(LOOPBACK),
            Step::Up(end) => {
                let (netlink, index) = self.end(*end);
                netlink.set_up(index)
            }
            Step::Address(address) => self.pod.add_address(self.pod_index, *address),
            Step::Neighbour { end, address, mac } => {
                let (netlink, index) = self.end(*end);
                netlink.add_neighbour(index, *address, *mac)
            }
            Step::DefaultRoute { gateway } => self.pod.add_default_route(self.pod_index, *gateway),
            Step::PodRoute(address) => self.host.add_host_route(self.host_index, *address),
        }
    }

    /// Asks by name first: that takes no lock that other ADDs wait for, and there is hardly ever anything to delete.
    fn remove_leftover(&mut self, host: &str) -> io::Result<()> {
        match nix::net::if_::if_nametoindex(host) {
            Ok(_) => self.host.delete_link(host).map(drop),
            Err(nix::errno::Errno::ENODEV) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Carrier for Kernel<'_> {
    fn apply(&mut self, step: &Step) -> Result<(), Error> {
        self.step(step).map_err(|source| match step {
            // The host's end has a name of its own, whose leftovers are removed: it is the pod's that is taken.
            Step::CreateVeth(veth) if source.kind() == io::ErrorKind::AlreadyExists => {
                Error::InterfaceExists {
                    ifname: veth.pod.clone(),
                    netns: self.netns.path().to_owned(),
                }
            }
            step => Error::Step {
                step: step.clone(),
                source,
            },
        })
    }

    fn undo(&mut self, undo: &Undo) -> Result<(), Error> {
        let Undo::DeleteVeth { host } = undo;
        let deleted = self.host.delete_link(host);
        deleted.map(drop).map_err(|source| Error::Undo {
            undo: undo.clone(),
            source,
        })
    }
}

fn index(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    let link = netlink.link(name)?.ok_or(io::ErrorKind::NotFound)?;
    Ok(link.index)
}

pub(crate) fn opened(netlink: io::Result<Netlink>) -> Result<Netlink, Error> {
    netlink.map_err(|source| Error::Kernel {
        what: "open a netlink socket",
        source,
    })
}

/// Index of the loopback device in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
const LOOPBACK: u32 = 1;

#[cfg(test)]
mod tests {
    use mesh_common::cni::Attachment;

    use super::*;
    use crate::plan::plan;

    /// Keeps a diary, and fails at one step.
    struct Diary {
        fails_at: Option<usize>,
        applied: Vec<Step>,
        undone: Vec<Undo>,
    }

    impl Carrier for Diary {
        fn apply(&mut self, step: &Step) -> Result<(), Error> {
            if self.fails_at == Some(self.applied.len()) {
                return Err(Error::Step {
                    step: step.clone(),
                    source: io::ErrorKind::Other.into(),
                });
            }
            self.applied.push(step.clone());
            Ok(())
        }

        fn undo(&mut self, undo: &Undo) -> Result<(), Error> {
            self.undone.push(undo.clone());
            Ok(())
        }
    }

    fn steps() -> Vec<Step> {
        let attachment = Attachment {
            container: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        let wiring = Wiring {
            addresses: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            mtu: 1500,
        };
        plan(&attachment, &wiring, Ipv6::Present)
    }

    #[test]
    fn every_failure_undoes_exactly_what_was_done() {
        let steps = steps();
        for failing in 0..steps.len() {
            let mut diary = Diary {
                fails_at: Some(failing),
                applied: Vec::new(),
                undone: Vec::new(),
            };
            apply(&steps, &mut diary).unwrap_err();
            assert_eq!(diary.applied, steps[..failing]);
            let mut done: Vec<_> = diary.applied.iter().filter_map(Step::undo).collect();
            done.reverse();
            assert_eq!(diary.undone, done);
        }
    }

    #[test]
    fn success_undoes_nothing_and_tells_how_to() {
        let mut diary = Diary {
            fails_at: None,
            applied: Vec::new(),
            undone: Vec::new(),
        };
        let undos = apply(&steps(), &mut diary).unwrap();
        assert_eq!(diary.applied, steps());
        assert!(diary.undone.is_empty());
        assert_eq!(undos.len(), 1);
    }
}
