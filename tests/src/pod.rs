//! Pods, services and namespaces of a lab. The harness plays the kubelet: object, sandbox, plugin, status.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::cni::{Answer, Call};
use crate::lab::Lab;
use crate::netns::Netns;
use crate::node::Node;
use crate::objects::{self, Labels, MODE};
use crate::process::Process;
use crate::wait::{SOON, eventually};
use crate::world::Family;

/// How long a connection may take to open, and how long its reads and writes may wait.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A pod that is wired and ready.
#[derive(Debug)]
pub struct Pod<'lab> {
    lab: &'lab Lab,
    namespace: String,
    name: String,
    node: &'lab Node,
    netns: Netns,
    /// Its addresses, IPv4 first.
    addresses: Vec<IpAddr>,
    call: Call,
    /// The result of the ADD.
    added: Value,
}

/// A pod to be made.
#[derive(Debug)]
pub struct PodBuilder<'lab> {
    lab: &'lab Lab,
    namespace: String,
    name: String,
    service_account: String,
    node: String,
    labels: Labels,
}

impl<'lab> PodBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            namespace: "default".to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            node: "n1".to_owned(),
            labels: Labels::from([("app".to_owned(), name.to_owned())]),
        }
    }

    /// Its namespace; `default` unless told.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    /// Its service account; one of the pod's own name unless told.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Adds a label; `app`, with the pod's name, is there unless told otherwise.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Its node; `n1` unless told.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    /// Makes the pod, and waits until every agent knows it.
    pub fn create(self) -> Result<Pod<'lab>> {
        let Self {
            lab,
            namespace,
            name,
            ..
        } = &self;
        let node = lab.node(&self.node);
        if lab.objects().get("Namespace", "", namespace).is_none() {
            lab.objects()
                .apply(objects::namespace(namespace, &Labels::new()))?;
        }
        lab.objects()
            .apply(objects::service_account(namespace, &self.service_account))?;
        let object = objects::pod(
            namespace,
            name,
            &self.service_account,
            &self.node,
            &self.labels,
        );
        lab.objects().apply(object)?;

        let sandbox = format!("mesh-{}-{namespace}-{name}", lab.name());
        let netns = Netns::create(&sandbox)?;
        let call = Call {
            container: sandbox,
            netns: netns.path().display().to_string(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=uid-{namespace}-{name}"
            ),
            config: Value::Null,
        };
        let added = add(node, &call).with_context(|| format!("pod {namespace}/{name}"))?;
        let addresses = addresses(&added)?;
        lab.objects().edit("Pod", namespace, name, |pod| {
            objects::set_ready(pod, &addresses)
        })?;
        lab.settle()?;
        let Self {
            lab,
            namespace,
            name,
            ..
        } = self;
        Ok(Pod {
            lab,
            namespace,
            name,
            node,
            netns,
            addresses,
            call,
            added,
        })
    }
}

/// Adds the pod to the network, trying again when the plugin says so, as a kubelet does.
fn add(node: &Node, call: &Call) -> Result<Value> {
    let mut last: Option<Answer> = None;
    let done = eventually("ADD", SOON, || {
        let answer = last.insert(node.cni().call(node.netns(), "ADD", call)?);
        Ok(answer.code() != Some(11))
    });
    let answer = last.context("mesh-cni was not called")?;
    answer.success()?;
    done?;
    Ok(answer.json)
}

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("a result without ips")?;
    let mut addresses = ips
        .iter()
        .map(|ip| {
            let cidr = ip["address"].as_str().context("an ip without address")?;
            Ok(cidr.split('/').next().unwrap_or(cidr).parse()?)
        })
        .collect::<Result<Vec<IpAddr>>>()?;
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
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

/// A namespace to be made.
#[derive(Debug)]
pub struct NamespaceBuilder<'lab> {
    lab: &'lab Lab,
    name: String,
    labels: Labels,
}

impl<'lab> NamespaceBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            name: name.to_owned(),
            labels: Labels::new(),
        }
    }

    /// Enrols its pods.
    #[must_use]
    pub fn ambient(mut self) -> Self {
        self.labels.insert(MODE.to_owned(), "ambient".to_owned());
        self
    }

    /// Makes it.
    pub fn create(self) -> Result<()> {
        self.lab
            .objects()
            .apply(objects::namespace(&self.name, &self.labels))
    }
}

/// A service to be made.
#[derive(Debug)]
pub struct ServiceBuilder<'lab> {
    lab: &'lab Lab,
    namespace: String,
    name: String,
    selector: Labels,
    ports: (u16, u16),
}

impl<'lab> ServiceBuilder<'lab> {
    pub(crate) fn new(lab: &'lab Lab, name: &str) -> Self {
        Self {
            lab,
            namespace: "default".to_owned(),
            name: name.to_owned(),
            selector: Labels::from([("app".to_owned(), name.to_owned())]),
            ports: (80, 80),
        }
    }

    /// Its namespace; `default` unless told.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        name.clone_into(&mut self.namespace);
        self
    }

    /// The one label that it selects by; `app`, with its own name, unless told.
    #[must_use]
    pub fn selector(mut self, key: &str, value: &str) -> Self {
        self.selector = Labels::from([(key.to_owned(), value.to_owned())]);
        self
    }

    /// Its port, and that of the pods; 80 and 80 unless told.
    #[must_use]
    pub fn port(mut self, port: u16, target: u16) -> Self {
        self.ports = (port, target);
        self
    }

    /// Makes it, and waits until every agent knows it. Its endpoints follow the pods from now on.
    pub fn create(self) -> Result<Service> {
        let number = self.lab.objects().all("Service").len() + 10;
        let ips = [
            format!("10.96.0.{number}").parse()?,
            format!("fd00:96::{number:x}").parse()?,
        ];
        let (port, target) = self.ports;
        let object = objects::service(
            &self.namespace,
            &self.name,
            &self.selector,
            &ips,
            port,
            target,
        );
        self.lab.objects().apply(object)?;
        self.lab.settle()?;
        Ok(Service { ips, port })
    }
}

/// A service.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    ips: [IpAddr; 2],
    port: u16,
}

impl Service {
    /// Its address and port.
    pub fn at(&self, family: Family) -> SocketAddr {
        let [v4, v6] = self.ips;
        SocketAddr::new(if family == Family::V4 { v4 } else { v6 }, self.port)
    }
}
