//! The agent keeps no right that it does not use, speaks to root alone, and but for metrics and health listens where no pod can reach it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::scenario;
use mesh_tests::node::Node;

/// Metrics and health, which are served to all; `endpoints` tries what else they tell.
const OPEN_PORTS: [u16; 2] = [15020, 15021];

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`.
const CAPABILITIES: u64 = 1 << 12 | 1 << 21;

#[test]
fn the_agent_is_confined() -> Result<()> {
    scenario("confined", |lab| {
        lab.namespace("shop").ambient().create()?;
        lab.pod("pod").namespace("shop").on("n1").create()?;
        let node = lab.node("n1");
        let pid = node.agent().pid().context("no agent")?;
        let mut carriers = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let field = |name: &str| {
                let line = status.lines().find_map(|it| it.strip_prefix(name));
                line.map(str::trim).with_context(|| format!("no {name}"))
            };
            for set in ["CapPrm:", "CapEff:"] {
                let has = u64::from_str_radix(field(set)?, 16)?;
                ensure!(has & !CAPABILITIES == 0, "{set} {has:x}");
            }
            ensure!(field("NoNewPrivs:")? == "1", "{status}");
            ensure!(field("Seccomp:")? == "2", "no filter: {status}");
            // Theirs beside that of all threads.
            if field("Name:")?.starts_with("carry") {
                carriers += 1;
                ensure!(field("Seccomp_filters:")? == "2", "{status}");
            }
        }
        ensure!(carriers > 0, "no thread carries");
        for socket in [node.admin_socket(), node.cni_socket()] {
            let mode = fs::metadata(&socket)?.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{}: {mode:o}", socket.display());
            ensure!(answers(&socket), "root is served");
            // As if somebody had opened it to all.
            fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
            ensure!(
                !answers_nobody(&socket)?,
                "{}: others are served",
                socket.display()
            );
        }
        for (address, port) in listening(node)? {
            let is_for_all = OPEN_PORTS.contains(&port);
            ensure!(
                address.is_loopback() || is_for_all,
                "port {port} listens at {address}"
            );
        }
        Ok(())
    })
}

/// Whether somebody reads what is said at a socket: one who is turned away is cut off at once.
fn answers(socket: &Path) -> bool {
    let exchange = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(b"\n\n")?;
        stream.read(&mut [0])
    };
    matches!(exchange(), Ok(1))
}

/// The same, asked by somebody who is not root.
fn answers_nobody(socket: &Path) -> Result<bool> {
    let ask = "import os, socket, sys
os.setgid(65534)
os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    s.sendall(b'\\n\\n')
    print(len(s.recv(1)))
except OSError:
    print(0)";
    let mut python = Command::new("/usr/bin/python3");
    let output = python.args(["-c", ask]).arg(socket).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(output.stdout.starts_with(b"1"))
}

/// Where TCP listens in a node's own namespace.
fn listening(node: &Node) -> Result<Vec<(std::net::IpAddr, u16)>> {
    const LISTEN: &str = "0A";
    let mut found = Vec::new();
    for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let table = node.netns().run(|| fs::read_to_string(file))?;
        for line in table.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next(), fields.nth(1));
            if state == Some(LISTEN) {
                let (address, port) = local
                    .and_then(|it| it.split_once(':'))
                    .context("no address")?;
                let port = u16::from_str_radix(port, 16)?;
                let address = if address.len() == 8 {
                    Ipv4Addr::from(u32::from_str_radix(address, 16)?.to_ne_bytes()).into()
                } else {
                    let words =
                        (0..4).map(|word| u32::from_str_radix(&address[word * 8..][..8], 16));
                    let words: Vec<u8> = words
                        .collect::<Result<Vec<_>, _>>()?
                        .iter()
                        .flat_map(|it| it.to_ne_bytes())
                        .collect();
                    Ipv6Addr::from(<[u8; 16]>::try_from(words).expect("four words")).into()
                };
                found.push((address, port));
            }
        }
    }
    Ok(found)
}
