//! Answers `CreateCertificate`: asks Kubernetes who calls, lets `decide` decide, and signs.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;
use tracing::Span;

use super::cluster::{Cluster, ClusterError};
use super::decide::{Refusal, Rules, bearer, runs_on};
use super::keeper::{Current, CurrentReceiver};
use crate::causes::causes;
use crate::pki::wire::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use crate::pki::{self, Chain};

/// What answers agents.
pub struct Service<C> {
    cluster: Arc<C>,
    rules: Rules,
    current: CurrentReceiver,
}

/// Why there is no certificate; a refusal is final, the rest may pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The rules are against it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The certificate request is not acceptable.
    #[error(transparent)]
    Request(#[from] pki::Error),
    /// Kubernetes could not be asked.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The root was not read lately.
    #[error("the root has not been read yet, or not lately")]
    NotReady,
}

impl Failure {
    fn code(&self) -> Code {
        match self {
            Self::Refused(refusal) if refusal.is_about_the_caller() => Code::Unauthenticated,
            Self::Refused(Refusal::NoIdentity | Refusal::MalformedIdentity { .. })
            | Self::Request(_) => Code::InvalidArgument,
            Self::Refused(_) => Code::PermissionDenied,
            Self::Cluster(_) | Self::NotReady => Code::Unavailable,
        }
    }
}

impl From<Failure> for Status {
    /// What Kubernetes said is for the log only: whoever asks need not have proved anything yet.
    fn from(failure: Failure) -> Self {
        let words = match &failure {
            Failure::Cluster(_) => failure.to_string(),
            _ => causes(&failure),
        };
        Self::new(failure.code(), words)
    }
}

impl<C: Cluster> Service<C> {
    /// A service that signs with what `current` says.
    pub fn new(cluster: Arc<C>, rules: Rules, current: CurrentReceiver) -> Self {
        Self {
            cluster,
            rules,
            current,
        }
    }

    /// Whether it can sign.
    pub fn is_ready(&self) -> bool {
        self.signing(SystemTime::now()).is_some()
    }

    fn signing(&self, now: SystemTime) -> Option<Arc<Current>> {
        let current = self.current.borrow().clone();
        current.filter(|it| it.is_fresh_at(now))
    }

    /// Answers one HTTP/2 request.
    pub async fn answer(
        self: Arc<Self>,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Infallible> {
        if request.uri().path() != CREATE_CERTIFICATE {
            return Ok(Status::unimplemented("only CreateCertificate is served").into_http());
        }
        let create = service_fn(move |request| {
            let service = self.clone();
            async move { service.create(request).await }
        });
        let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
        let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST);
        Ok(grpc.unary(create, request).await)
    }

    #[tracing::instrument(
        name = "certificate",
        skip_all,
        fields(peer = ?peer(&request), identity = request.get_ref().impersonated(), caller, node)
    )]
    async fn create(
        &self,
        request: Request<CertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        match self.decide(&request, SystemTime::now()).await {
            Ok(chain) => {
                tracing::info!("certificate issued");
                Ok(Response::new(CertificateResponse {
                    cert_chain: chain.to_pem(),
                }))
            }
            Err(failure) => {
                let reason = causes(&failure);
                tracing::warn!(reason, code = ?failure.code(), "certificate refused");
                Err(failure.into())
            }
        }
    }

    async fn decide(
        &self,
        request: &Request<CertificateRequest>,
        now: SystemTime,
    ) -> Result<Chain, Failure> {
        let header = request.metadata().get(AUTHORIZATION.as_str());
        let token = bearer(header.and_then(|it| it.to_str().ok()))?;
        let review = self.cluster.review(token, &self.rules.audience).await?;
        let caller = self.rules.caller(review)?;
        Span::current().record("caller", caller.to_string());
        let request = request.get_ref();
        let identity = self.rules.identity(request.impersonated())?;
        let pod = self
            .cluster
            .pod(&caller.account.namespace, &caller.pod.name)
            .await?;
        let node = caller.on_node(pod.as_ref())?;
        Span::current().record("node", &node);
        let pods = self.cluster.pods(&node, &identity).await?;
        runs_on(&identity, &node, &pods)?;
        let current = self.signing(now).ok_or(Failure::NotReady)?;
        let wanted = u64::try_from(request.validity_duration).unwrap_or_default();
        let at_most = (wanted > 0).then(|| Duration::from_secs(wanted));
        Ok(current
            .authority
            .issue(&identity, &request.csr, at_most, now)?)
    }
}

fn peer<T>(request: &Request<T>) -> Option<SocketAddr> {
    let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
    info?.get_ref().remote_addr()
}

/// Bytes of a request; one with an RSA key of 4096 bits has two thousand.
const MAX_REQUEST: usize = 64 * 1024;
