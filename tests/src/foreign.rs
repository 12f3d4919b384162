//! A node of the cluster that runs none of our software: its pods are addresses of one machine on the fabric.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;

use crate::lab::Lab;
use crate::netns::Netns;
use crate::node::{Node, UPLINK};
use crate::objects::{self, Labels};
use crate::world::Family;

const NUMBER: u8 = 9;

/// The foreign node.
#[derive(Debug)]
pub struct Foreign<'lab> {
    lab: &'lab Lab,
    node: Node,
}

impl<'lab> Foreign<'lab> {
    /// Makes the machine, its Node object and its routes to the pods of the lab's nodes.
    pub fn create(lab: &'lab Lab) -> Result<Self> {
        let node = Node::create(lab.name(), NUMBER, lab.directory(), PathBuf::new(), &[])?;
        for family in Family::BOTH {
            for other in lab.nodes() {
                let cidr = &other.pod_cidrs()[family as usize];
                let via = other.ip(family);
                node.netns().ip(&format!("route add {cidr} via {via}"))?;
            }
        }
        let addresses = Family::BOTH.map(|family| node.ip(family));
        lab.objects()
            .apply(objects::node(node.name(), &addresses, &node.pod_cidrs()))?;
        Ok(Self { lab, node })
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        self.node.netns()
    }

    /// Tells the cluster of a pod here, IPv4 address first, and waits until every agent knows it.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<[IpAddr; 2]> {
        let addresses: [IpAddr; 2] = [
            format!("10.244.{NUMBER}.2").parse()?,
            format!("fd00:244:{NUMBER}::2").parse()?,
        ];
        self.netns().ip(&format!(
            "address add {}/32 dev {UPLINK}
             address add {}/128 dev {UPLINK} nodad",
            addresses[0], addresses[1]
        ))?;
        let labels = Labels::from([("app".to_owned(), name.to_owned())]);
        let objects = self.lab.objects();
        objects.apply(objects::service_account(namespace, name))?;
        let mut pod = objects::pod(namespace, name, name, self.node.name(), &labels);
        objects::set_ready(&mut pod, &addresses);
        objects.apply(pod)?;
        self.lab.settle()?;
        Ok(addresses)
    }
}
