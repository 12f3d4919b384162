//! A pod of a lab: what is done inside it, and to it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::cni::Call;
use crate::lab::Lab;
use crate::netns::Netns;
use crate::node::Node;
use crate::objects::MODE;
use crate::process::Process;
use crate::world::Family;

/// How long a connection may take to open, and how long its reads and writes may wait.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A pod that is wired and ready.
#[derive(Debug)]
pub struct Pod<'lab> {
    pub(crate) lab: &'lab Lab,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: &'lab Node,
    pub(crate) netns: Netns,
    /// Its addresses, IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) call: Call,
    /// The result of the ADD.
    pub(crate) added: Value,
}

impl Pod<'_> {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it runs on.
    pub fn node(&self) -> &Node {
        self.node
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What the plugin answered to the ADD.
    pub fn added(&self) -> &Value {
        &self.added
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its address.
    ///
    /// # Panics
    /// When it has none of the family.
    pub fn ip(&self, family: Family) -> IpAddr {
        let meant = |ip: &&IpAddr| ip.is_ipv4() == (family == Family::V4);
        *self
            .addresses
            .iter()
            .find(meant)
            .expect("pods are dual stack")
    }

    /// Its address with a port.
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// Opens a connection from inside.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.connect_with(to, |_| Ok(()))
    }

    /// Whether a connection from inside is refused, or gets no answer for two seconds.
    pub fn is_refused(&self, to: SocketAddr) -> bool {
        let attempt = || TcpStream::connect_timeout(&to, Duration::from_secs(2));
        self.netns.run(attempt).is_err()
    }

    /// Opens a connection from inside, with a socket that is prepared first: options, source address.
    pub fn connect_with(
        &self,
        to: SocketAddr,
        prepare: impl FnOnce(&Socket) -> io::Result<()> + Send,
    ) -> io::Result<TcpStream> {
        self.netns.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            prepare(&socket)?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(socket.into())
        })
    }

    /// Listens inside, both families on one socket.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.netns.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from(([0_u16; 8], port)).into())?;
            socket.listen(1024)?;
            Ok(socket.into())
        })
    }

    /// Runs a program inside, and returns what it wrote to its standard output.
    pub fn exec(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.netns.exec(program, arguments)
    }

    /// Runs a program inside, whatever its exit code.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        self.netns.output(Command::new(program).args(arguments))
    }

    /// Starts a program inside, which ends with the lab.
    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        let directory = self.lab.directory();
        let log = directory.join(format!("{}-{}.log", self.namespace, self.name));
        Process::spawn(&self.netns, command, &log, &directory.join("pids"))
    }

    /// Sets or removes a label, and waits until it is in force.
    pub fn label(&self, key: &str, value: Option<&str>) -> Result<()> {
        self.lab.label_pod(&self.namespace, &self.name, key, value)
    }

    /// Enrols it, by its own label.
    pub fn enrol(&self) -> Result<()> {
        self.label(MODE, Some("ambient"))
    }

    /// Takes it out of the mesh, whatever its namespace says.
    pub fn leave(&self) -> Result<()> {
        self.label(MODE, Some("none"))
    }

    /// The MAC addresses of the host's end and of the pod's end of its veth.
    pub fn macs(&self) -> Result<([u8; 6], [u8; 6])> {
        let interfaces = self.added["interfaces"]
            .as_array()
            .context("a result without interfaces")?;
        let mac = |inside: bool| {
            let found = interfaces
                .iter()
                .find(|it| it["sandbox"].as_str().is_some_and(|s| !s.is_empty()) == inside);
            parse_mac(
                found
                    .and_then(|it| it["mac"].as_str())
                    .context("an interface without mac")?,
            )
        };
        Ok((mac(false)?, mac(true)?))
    }

    /// Index of its own end of the veth.
    pub fn ifindex(&self) -> Result<u32> {
        Ok(self.netns.run(|| if_nametoindex("eth0"))?)
    }

    /// Takes it out of the network, removes its namespace and its object. Works without the agent, too.
    pub fn delete(self) -> Result<()> {
        self.node
            .cni()
            .call(self.node.netns(), "DEL", &self.call)?
            .success()?;
        Netns::remove(self.netns.name())?;
        self.lab
            .objects()
            .remove("Pod", &self.namespace, &self.name);
        self.lab.settle()
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    bytes
        .try_into()
        .ok()
        .with_context(|| format!("{text} is no MAC address"))
}
