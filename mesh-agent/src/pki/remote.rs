//! The authority of a cluster, asked over the API that istiod, istio-csr and `mesh-agent ca` serve.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue};
use tokio::sync::Mutex;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::wire::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use super::{Chain, DEFAULT_LIFETIME, Error, Signer, Signing};
use crate::causes::causes;
use crate::model::Identity;

/// Where the authority is, and what proves each side to the other.
#[derive(Clone, Debug)]
pub struct Remote {
    /// `HOST:PORT`.
    pub address: String,
    /// PEM file of the roots that its serving certificate chains to.
    pub root: PathBuf,
    /// File of the token that says who we are; it rotates.
    pub token: PathBuf,
    /// The name its certificate must have, if not the host of the address.
    pub server_name: Option<String>,
    /// The cluster that the token is of, as istiod knows it.
    pub cluster: String,
}

/// What an authority that answers thinks of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It looked at what was asked, not only at who asked.
    Known,
    /// There was no token to show; why.
    NoToken(String),
    /// It does not sign for the token that it was shown; its words.
    Unknown(String),
    /// It signs for nobody at present; its words.
    Unable(String),
}

/// A [`Signer`] that asks a [`Remote`] authority in the name of the identity's pods.
///
/// Both files are read again for each certificate. The connection is kept, until it breaks or the root file changes.
pub struct RemoteCa {
    remote: Remote,
    connection: Mutex<Option<Connection>>,
}

struct Connection {
    /// What the root file said when it was made.
    roots: Vec<u8>,
    channel: Channel,
}

impl RemoteCa {
    /// Nothing is read or dialled before the first certificate is asked for.
    ///
    /// # Errors
    /// The address is not `HOST:PORT`.
    pub fn new(remote: Remote) -> Result<Self, Error> {
        endpoint(&remote.address)?;
        Ok(Self {
            remote,
            connection: Mutex::default(),
        })
    }

    /// Dials the authority, shows it our token, and asks for what it can only refuse.
    ///
    /// # Errors
    /// There is no connection to it, or it is not the one that the roots prove.
    pub async fn standing(&self) -> Result<Standing, Error> {
        let roots = read(&self.remote.root).await?;
        let dialled = self.endpoint(&roots)?.connect().await;
        let channel = dialled.map_err(|source| self.unconnected(source))?;
        let headers = self.headers().await;
        let shown = headers.as_ref().cloned().unwrap_or_default();
        // No key and no identity: whoever gets as far as that says that the argument is invalid.
        let refused = create(channel, CertificateRequest::default(), shown).await;
        let status = refused.err().unwrap_or_else(|| Status::new(Code::Ok, ""));
        let words = status.message().to_owned();
        Ok(match (status.code(), headers) {
            (_, Err(error)) => Standing::NoToken(causes(&error)),
            (Code::Unauthenticated | Code::PermissionDenied, _) => Standing::Unknown(words),
            (Code::Ok | Code::InvalidArgument, _) => Standing::Known,
            _ => Standing::Unable(words),
        })
    }

    async fn channel(&self) -> Result<Channel, Error> {
        let roots = read(&self.remote.root).await?;
        let mut connection = self.connection.lock().await;
        if let Some(kept) = &*connection
            && kept.roots == roots
        {
            return Ok(kept.channel.clone());
        }
        let channel = self.endpoint(&roots)?.connect_lazy();
        *connection = Some(Connection {
            roots,
            channel: channel.clone(),
        });
        Ok(channel)
    }

    async fn ask(&self, identity: &Identity, request: &str) -> Result<Chain, Error> {
        let lifetime = i64::try_from(DEFAULT_LIFETIME.as_secs()).unwrap_or_default();
        let message = CertificateRequest::impersonating(&identity.to_string(), request, lifetime);
        let headers = self.headers().await?;
        let answer = create(self.channel().await?, message, headers).await;
        let answer = answer.map_err(|status| self.failure(identity, status))?;
        Chain::from_pem(&answer.cert_chain)
    }

    fn endpoint(&self, roots: &[u8]) -> Result<Endpoint, Error> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots));
        if let Some(name) = &self.remote.server_name {
            tls = tls.domain_name(name);
        }
        let endpoint = endpoint(&self.remote.address)?.tls_config(tls);
        endpoint.map_err(|source| self.unconnected(source))
    }

    /// Who asks, and of which cluster.
    async fn headers(&self) -> Result<HeaderMap, Error> {
        let token = read(&self.remote.token).await?;
        let token = Some(token.trim_ascii()).filter(|token| !token.is_empty());
        let bearer = token.map(|token| [b"Bearer ", token].concat());
        let bearer = bearer.and_then(|it| HeaderValue::from_bytes(&it).ok());
        let mut bearer = bearer.ok_or_else(|| Error::NoToken {
            path: self.remote.token.clone(),
        })?;
        bearer.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, bearer);
        if let Ok(cluster) = self.remote.cluster.parse() {
            headers.insert("clusterid", cluster);
        }
        Ok(headers)
    }

    fn unconnected(&self, source: tonic::transport::Error) -> Error {
        Error::Connect {
            address: self.remote.address.clone(),
            source,
        }
    }

    /// A refusal is the authority's word; the rest is a state that passes.
    fn failure(&self, identity: &Identity, status: Status) -> Error {
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::Unimplemented
            | Code::NotFound
            | Code::FailedPrecondition => Error::Refused {
                identity: identity.clone(),
                address: self.remote.address.clone(),
                reason: status.message().to_owned(),
                code: status.code(),
            },
            _ => Error::Unavailable {
                address: self.remote.address.clone(),
                source: Box::new(status),
            },
        }
    }
}

impl Signer for RemoteCa {
    fn sign<'a>(&'a self, identity: &'a Identity, request: &'a str) -> Signing<'a> {
        Box::pin(self.ask(identity, request))
    }
}

async fn create(
    channel: Channel,
    message: CertificateRequest,
    headers: HeaderMap,
) -> Result<CertificateResponse, Status> {
    let mut asked = Request::new(message);
    *asked.metadata_mut() = MetadataMap::from_headers(headers);
    let mut client = Grpc::new(channel);
    let ready = client.ready().await;
    ready.map_err(|source| Status::from_error(Box::new(source)))?;
    let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
    let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
    Ok(client.unary(asked, path, codec).await?.into_inner())
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let invalid = || Error::Address {
        address: address.to_owned(),
    };
    let authority: http::uri::Authority = address.parse().map_err(|_| invalid())?;
    if authority.port().is_none() || address.contains('@') {
        return Err(invalid());
    }
    // A replica that vanished without a word is noticed before the deadline of the next request.
    Ok(Endpoint::from_shared(format!("https://{address}"))
        .map_err(|_| invalid())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT))
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    tokio::fs::read(path).await.map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
