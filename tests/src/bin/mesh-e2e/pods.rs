//! Pods of scenarios, and one call from one to another.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::objects;

/// Where every pod serves its page.
pub(crate) const HTTP: u16 = 8080;

/// How long a call may take unless a scenario says otherwise, in seconds.
pub(crate) const PATIENCE: u32 = 3;

/// How long pods may take to be ready.
const START: &str = "--timeout=120s";

/// A pod that is ready.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ip: String,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The page: who answers, and whom it saw.
    Page(String),
    /// The exit code of the client: 7 of curl is a connection refused, 28 is too late, 56 is cut.
    Failed(i32),
}

impl Pod {
    /// Where its page is.
    pub(crate) fn http(&self) -> String {
        at(&self.ip, HTTP)
    }

    /// Its name in the mesh.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The end of its SPIFFE id, behind the trust domain.
    pub(crate) fn identity(&self) -> String {
        format!("/ns/{}/sa/{}", self.namespace, self.name)
    }
}

/// An address and a port, as they are written together.
pub(crate) fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// A line of shell that gets the page at an address.
pub(crate) fn get(to: &str, patience: u32) -> String {
    let url = format!("http://{to}/cgi-bin/who");
    format!(
        "if command -v curl >/dev/null; then curl -sS -m {patience} {url}; else wget -q -T {patience} -O - {url}; fi"
    )
}

impl Cluster {
    /// Creates pods, each given by name and node, and waits until they are ready.
    pub(crate) fn pods<const N: usize>(
        &self,
        namespace: &str,
        wanted: [(&str, &str); N],
    ) -> Result<[Pod; N]> {
        self.create_pods(namespace, &wanted)?;
        let wait = [
            "wait",
            "--for=condition=Ready",
            "pod",
            "--all",
            "-n",
            namespace,
            START,
        ];
        self.kubectl.run(&wait)?;
        let mut pods = Vec::new();
        for (name, node) in wanted {
            let pod = self.kubectl.json(&["get", "pod", name, "-n", namespace])?;
            let ip = pod["status"]["podIP"]
                .as_str()
                .context("a pod without address")?;
            pods.push(Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                node: node.to_owned(),
                ip: ip.to_owned(),
            });
        }
        Ok(pods.try_into().expect("as many as were wanted"))
    }

    /// Creates pods without waiting for them.
    pub(crate) fn create_pods(&self, namespace: &str, wanted: &[(&str, &str)]) -> Result<()> {
        let accounts = wanted
            .iter()
            .map(|(name, _)| objects::account(namespace, name));
        let pods = wanted
            .iter()
            .map(|(name, node)| objects::pod(namespace, name, node, &self.image, &self.pull));
        self.kubectl
            .apply(&objects::list(&accounts.chain(pods).collect::<Vec<_>>()))
    }

    /// Calls an address from a pod once.
    pub(crate) fn call(&self, from: &Pod, to: &str) -> Result<Answer> {
        let output = self.kubectl.sh(from, &get(to, PATIENCE))?;
        Ok(match output.status.code() {
            Some(0) => Answer::Page(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            code => Answer::Failed(code.context("kubectl was killed")?),
        })
    }

    /// Calls an address, and returns the name of the pod that answers.
    pub(crate) fn answered(&self, from: &Pod, to: &str) -> Result<String> {
        match self.call(from, to)? {
            Answer::Page(page) => Ok(page.split(' ').next().unwrap_or_default().to_owned()),
            Answer::Failed(code) => Err(anyhow::anyhow!(
                "{} calls {to}: failed with code {code}",
                from.full_name()
            )),
        }
    }

    /// Calls a pod from a pod: it must answer, and must see the client's own address.
    pub(crate) fn reaches(&self, from: &Pod, to: &Pod) -> Result<()> {
        let expected = Answer::Page(format!("{} {}", to.name, from.ip));
        let answer = self.call(from, &to.http())?;
        // A server on a dual-stack socket writes IPv4 clients as IPv6.
        let plain = match answer {
            Answer::Page(page) => Answer::Page(page.replace("::ffff:", "").replace(['[', ']'], "")),
            failed @ Answer::Failed(_) => failed,
        };
        ensure!(
            plain == expected,
            "{} calls {}: {plain:?} in place of {expected:?}",
            from.full_name(),
            to.full_name()
        );
        Ok(())
    }

    /// Calls an address that must refuse, and returns how long that took.
    ///
    /// # Errors
    /// When there is an answer, or when the call was not refused but waited in vain.
    pub(crate) fn refused(&self, from: &Pod, to: &str) -> Result<Duration> {
        let began = Instant::now();
        let answer = self.call(from, to)?;
        let took = began.elapsed();
        ensure!(
            matches!(answer, Answer::Failed(_)),
            "{} calls {to}, which should be refused: {answer:?}",
            from.full_name()
        );
        ensure!(
            took < Duration::from_secs(u64::from(PATIENCE)),
            "{} calls {to}: no word of a refusal within {took:.1?}",
            from.full_name()
        );
        Ok(took)
    }

    /// Every pod of a namespace is ready, and no container was started again.
    pub(crate) fn probes_green(&self, namespace: &str) -> Result<()> {
        let pods = self.kubectl.json(&["get", "pods", "-n", namespace])?;
        let pods = pods["items"].as_array().context("a list of pods")?;
        ensure!(!pods.is_empty(), "there are no pods in {namespace}");
        for pod in pods {
            let container = &pod["status"]["containerStatuses"][0];
            ensure!(
                container["ready"] == true && container["restartCount"] == 0,
                "{namespace}/{}: its probes fail: {container}",
                pod["metadata"]["name"].as_str().unwrap_or_default()
            );
        }
        Ok(())
    }
}
