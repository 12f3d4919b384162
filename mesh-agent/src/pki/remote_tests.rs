//! The client against a server that knows nothing of ours: h2 and bytes, answering as istiod does.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer};
use rcgen::{KeyPair, SanType};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{Error, Remote, RemoteCa, Signer};
use crate::model::Identity;

type Issued = (rcgen::Certificate, Issuer<'static, KeyPair>);

fn authority(by: Option<&Issuer<'static, KeyPair>>) -> Issued {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = match by {
        Some(by) => params.signed_by(&key, by),
        None => params.self_signed(&key),
    };
    (certificate.unwrap(), Issuer::new(params, key))
}

/// A protobuf field of bytes: tag, length in base 128, content.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let (mut out, mut left) = (vec![number << 3 | 2], content.len());
    while left > 0x7f {
        out.push(u8::try_from(left & 0x7f).unwrap() | 0x80);
        left >>= 7;
    }
    out.push(u8::try_from(left).unwrap());
    [&out, content].concat()
}

/// The content of the first field of the message, which must be `number`, of bytes.
fn first_field(number: u8, message: &[u8]) -> &[u8] {
    assert_eq!(message[0], number << 3 | 2);
    let mut length = 0;
    for (at, byte) in message[1..].iter().enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return &message[at + 2..][..length];
        }
    }
    panic!("a length without an end")
}

struct Istiod {
    acceptor: TlsAcceptor,
    intermediate: Issued,
    root: Issued,
}

impl Istiod {
    fn new() -> Self {
        let root = authority(None);
        let intermediate = authority(Some(&root.1));
        let key = KeyPair::generate().unwrap();
        let names = vec!["istiod.istio-system.svc".to_owned()];
        let params = CertificateParams::new(names).unwrap();
        let leaf = params.signed_by(&key, &root.1).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.into()], key.into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            acceptor: Arc::new(config).into(),
            intermediate,
            root,
        }
    }

    fn chain(&self, request: &[u8]) -> Vec<u8> {
        let csr = std::str::from_utf8(first_field(1, request)).unwrap();
        let csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let leaf = csr.signed_by(&self.intermediate.1).unwrap();
        let roots = self.root.0.pem() + &authority(None).0.pem();
        let elements = [leaf.pem(), self.intermediate.0.pem(), roots];
        let fields = elements.iter().map(|it| field(1, it.as_bytes()));
        fields.flatten().collect()
    }

    /// Answers the first request of the first connection, and gives its headers and message.
    async fn answer_one(self, listener: TcpListener, refuse: bool) -> (HeaderMap, Vec<u8>) {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = self.acceptor.accept(stream).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut rest = JoinSet::new();
        rest.spawn(async move { while connection.accept().await.is_some() {} });
        let path = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
        assert_eq!(
            (request.method().as_str(), request.uri().path()),
            ("POST", path)
        );
        let headers = request.headers().clone();
        let (mut body, mut message) = (request.into_body(), Vec::new());
        while let Some(data) = body.data().await {
            message.extend(data.unwrap());
        }
        // A byte that says uncompressed, and four of length.
        let message = message.split_off(5);
        let response = http::Response::builder().header("content-type", "application/grpc");
        if refuse {
            let response = response.header("grpc-status", "16");
            let response = response.header("grpc-message", "caller%20does%20not%20run%20there");
            respond
                .send_response(response.body(()).unwrap(), true)
                .unwrap();
        } else {
            let chain = self.chain(&message);
            let length = u32::try_from(chain.len()).unwrap().to_be_bytes();
            let mut stream = respond
                .send_response(response.body(()).unwrap(), false)
                .unwrap();
            let data = [&[0], &length[..], &chain].concat();
            stream.send_data(Bytes::from(data), false).unwrap();
            let status = ("grpc-status".parse().unwrap(), "0".parse().unwrap());
            stream
                .send_trailers(HeaderMap::from_iter([status]))
                .unwrap();
        }
        // The connection is driven until the client has gone.
        rest.join_next().await;
        (headers, message)
    }
}

async fn ask(refuse: bool) -> (Result<super::Chain, Error>, HeaderMap, Vec<u8>) {
    let (istiod, files) = (Istiod::new(), TempDir::new().unwrap());
    let (root, token) = (files.path().join("root"), files.path().join("token"));
    fs::write(&root, istiod.root.0.pem()).unwrap();
    fs::write(&token, "a.b.c\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = RemoteCa::new(Remote {
        address: listener.local_addr().unwrap().to_string(),
        root,
        token,
        server_name: Some("istiod.istio-system.svc".into()),
        cluster: "east".into(),
    });
    let client = client.unwrap();
    let identity = Identity::new("cluster.local", "shop", "web");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let name = identity.to_string().try_into().unwrap();
    params.subject_alt_names = vec![SanType::URI(name)];
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let asked = async {
        let answer = client.sign(&identity, &request).await;
        drop(client);
        answer
    };
    let (answer, (headers, message)) = tokio::join!(asked, istiod.answer_one(listener, refuse));
    (answer, headers, message)
}

#[tokio::test]
async fn asks_and_understands_as_istio_does() {
    let (answer, headers, message) = ask(false).await;
    let chain = answer.unwrap();
    assert_eq!((chain.certificates.len(), chain.roots.len()), (2, 2));
    assert_eq!(headers["authorization"], "Bearer a.b.c");
    assert_eq!(headers["clusterid"], "east");
    assert_eq!(headers["content-type"], "application/grpc");
    // After the request: 86400 s as field 3, then the metadata, a map of one entry, as field 4.

    let identity = b"spiffe://cluster.local/ns/shop/sa/web";
    let value = field(2, &field(3, identity));
    let entry = [field(1, b"ImpersonatedIdentity"), value].concat();
    let metadata = field(4, &field(1, &entry));
    let lifetime = [3 << 3, 0x80, 0xa3, 0x05];
    let expected = [&lifetime[..], &metadata].concat();
    assert!(message.ends_with(&expected), "{message:?}");
}

#[tokio::test]
async fn a_refusal_is_told_in_the_authoritys_words() {
    let (answer, ..) = ask(true).await;
    let error = answer.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { reason, code: tonic::Code::Unauthenticated, .. }
            if reason == "caller does not run there"),
        "{error}"
    );
}

#[test]
fn an_address_is_host_and_port() {
    let check = |address: &str, good: bool| {
        let remote = Remote {
            address: address.into(),
            root: "root".into(),
            token: "token".into(),
            server_name: None,
            cluster: String::new(),
        };
        let made = RemoteCa::new(remote);
        assert_eq!(made.is_ok(), good, "{address}");
    };
    check("mesh-ca.mesh-system.svc:15012", true);
    check("10.0.0.1:15012", true);
    check("[fd00::1]:15012", true);
    check("mesh-ca", false);
    check("https://mesh-ca:15012", false);
    check("user@mesh-ca:15012", false);
    check("", false);
}
