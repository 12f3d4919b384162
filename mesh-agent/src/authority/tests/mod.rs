//! Agents and the authority in one process, over real TLS; only Kubernetes is made up.

mod clients;
mod fake;
mod refusals;
mod rotations;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use rcgen::{CertificateParams, KeyPair, SanType};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use self::fake::Fake;
use super::*;
use crate::model::Identity;
use crate::pki::wire::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use crate::pki::{DEFAULT_LIFETIME, Remote, RemoteCa};

const DOMAIN: &str = "cluster.local";
const NAME: &str = "mesh-ca.mesh-system.svc";
const AGENT: &str = "system:serviceaccount:mesh-system:mesh-agent";

fn id(account: &str) -> Identity {
    Identity::new(DOMAIN, "shop", account)
}

fn timing() -> Timing {
    Timing {
        lifetime: DEFAULT_LIFETIME,
        overlap: Duration::ZERO,
    }
}

fn keeper(cluster: &Arc<Fake>, timing: Timing) -> (Keeper<Fake>, keeper::CurrentReceiver) {
    let settings = Settings {
        trust_domain: DOMAIN.into(),
        names: vec![NAME.into()],
        timing,
        secret: "mesh-system/mesh-ca-root".into(),
    };
    Keeper::new(cluster.clone(), settings)
}

/// A certificate request in PEM that names `uri`, with a key of the right kind.
fn csr(uri: &str) -> String {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    csr_of(uri, &key)
}

fn csr_of(uri: &str, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// One replica that serves on loopback, and the files that an agent asks it with.
///
/// The agent of node n1 has the token `agent`; shop/web runs on n1, shop/cart on n2.
struct World {
    cluster: Arc<Fake>,
    address: SocketAddr,
    files: TempDir,
    keeper: Keeper<Fake>,
    current: keeper::CurrentReceiver,
    tasks: JoinSet<()>,
}

impl World {
    async fn new(lifetime: Duration) -> Self {
        Self::begun_at(SystemTime::now(), lifetime).await
    }

    /// With a root that was made, and read last, at `start`.
    async fn begun_at(start: SystemTime, lifetime: Duration) -> Self {
        let cluster = Arc::new(Fake::with_pods());
        let (mut keeper, current) = keeper(
            &cluster,
            Timing {
                lifetime,
                ..timing()
            },
        );
        keeper.tick(start).await.unwrap();
        let files = TempDir::new().unwrap();
        std::fs::write(files.path().join("root"), cluster.published()).unwrap();
        std::fs::write(files.path().join("token"), "agent\n").unwrap();
        let mut world = Self {
            cluster,
            address: ([127, 0, 0, 1], 0).into(),
            files,
            keeper,
            current,
            tasks: JoinSet::new(),
        };
        world.start().await;
        world
    }

    fn service(&self) -> Arc<Service<Fake>> {
        let rules = Rules {
            audience: "istio-ca".into(),
            allowed: vec![AGENT.parse().unwrap()],
            trust_domain: DOMAIN.into(),
        };
        Arc::new(Service::new(
            self.cluster.clone(),
            rules,
            self.current.clone(),
        ))
    }

    /// Serves, again on the same port if it did before.
    async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let (service, current) = (self.service(), self.current.clone());
        self.tasks.spawn(async move {
            serve(service, listener, current, CancellationToken::new())
                .await
                .unwrap();
        });
    }

    async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    fn client(&self) -> RemoteCa {
        let remote = Remote {
            address: self.address.to_string(),
            root: self.files.path().join("root"),
            token: self.files.path().join("token"),
            server_name: Some(NAME.into()),
            cluster: "Kubernetes".into(),
        };
        RemoteCa::new(remote).unwrap()
    }

    /// Asks without a client of ours, so that everything can be left out or wrong.
    async fn call(
        &self,
        bearer: Option<&str>,
        message: CertificateRequest,
    ) -> Result<CertificateResponse, Status> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.cluster.published()))
            .domain_name(NAME);
        let channel = Endpoint::from_shared(format!("https://{}", self.address))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut request = Request::new(message);
        if let Some(bearer) = bearer {
            let value = format!("Bearer {bearer}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let mut client = Grpc::new(channel);
        client.ready().await.unwrap();
        let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let answer = client.unary(request, path, codec).await?;
        Ok(answer.into_inner())
    }
}
