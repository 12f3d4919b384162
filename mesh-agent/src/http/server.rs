//! The server that all endpoints share: HTTP/1.1, one request a connection.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::libc;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Address, Ports};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// How.
    pub method: Method,
    /// Where, without the query.
    pub path: String,
    /// The query, as it came.
    pub query: String,
    /// What kinds of answers the asker understands, as it says.
    pub accept: String,
    /// By what name or address the asker calls us.
    pub host: String,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// What the body is.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
    /// The methods that there are, where another was used.
    pub allow: Option<&'static str>,
}

impl Answer {
    /// A text for people.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8".to_owned(),
            body: Bytes::from(text.into()),
            allow: None,
        }
    }

    /// A document for programs.
    pub fn json(status: StatusCode, document: &impl serde::Serialize) -> Self {
        match serde_json::to_vec_pretty(document) {
            Ok(body) => Self {
                status,
                content_type: "application/json".to_owned(),
                body: body.into(),
                allow: None,
            },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// Nothing is there; `paths` are.
    pub fn not_found(paths: &str) -> Self {
        Self::text(StatusCode::NOT_FOUND, format!("there is: {paths}\n"))
    }

    /// The path takes other methods.
    pub fn not_so(allow: &'static str) -> Self {
        let text = format!("ask with {allow}\n");
        Self {
            allow: Some(allow),
            ..Self::text(StatusCode::METHOD_NOT_ALLOWED, text)
        }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Ok(content_type) = HeaderValue::try_from(self.content_type) {
            headers.insert(CONTENT_TYPE, content_type);
        }
        for (name, value) in ALWAYS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// What a server serves. Bodies of requests are never read.
pub trait Endpoints: Send + Sync + 'static {
    /// Answers a request; may be dropped at any time.
    fn answer(&self, asked: Asked) -> impl Future<Output = Answer> + Send;
}

/// A server of some endpoints.
pub struct Server<E> {
    flag: &'static str,
    address: Address,
    endpoints: Arc<E>,
    ports: Ports,
}

impl<E: Endpoints> Server<E> {
    /// A server at the address that `flag` tells, which lets `ports` know how it is doing.
    pub fn new(flag: &'static str, address: Address, endpoints: E, ports: &Ports) -> Self {
        let server = Self {
            flag,
            address,
            endpoints: Arc::new(endpoints),
            ports: ports.clone(),
        };
        if let Address::At(_) = address {
            server.note(Some("not yet".to_owned()));
        }
        server
    }

    /// Serves until shutdown, which gives the port up at once and cuts calls short.
    ///
    /// A port that is taken is waited for: it may be that of an agent which is being replaced.
    pub async fn run(self, shutdown: CancellationToken) {
        let serving = async {
            match self.address {
                Address::Off => std::future::pending().await,
                Address::At(address) => {
                    let listener = self.listen(address).await;
                    self.serve(&listener).await;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = serving => {}
        }
    }

    async fn listen(&self, address: SocketAddr) -> TcpListener {
        let mut tries = 0;
        loop {
            match bind(address).await {
                Ok(listener) => {
                    info!(flag = self.flag, %address, "HTTP served");
                    self.note(None);
                    return listener;
                }
                Err(error) => {
                    if tries == PATIENT_TRIES {
                        warn!(flag = self.flag, %address, %error, "HTTP is not served; trying again");
                    }
                    self.note(Some(error.to_string()));
                }
            }
            tries += 1;
            sleep(PAUSE).await;
        }
    }

    fn note(&self, error: Option<String>) {
        self.ports.set(self.flag, self.address, error);
    }

    /// Serves on a listener, until it is dropped.
    pub async fn serve(&self, listener: &TcpListener) {
        let places = Places::default();
        let mut calls = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                Some(_) = calls.join_next() => continue,
                accepted = listener.accept(), if calls.len() < MAX_CALLS => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(place) = places.claim(peer.ip()) else {
                        debug!(%peer, "too many HTTP connections: closed");
                        continue;
                    };
                    let call = call(stream, self.endpoints.clone());
                    calls.spawn(async move {
                        call.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(flag = self.flag, %error, "cannot accept an HTTP connection");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Listens; on all of IPv4 instead of all of IPv6 where the kernel has none of that.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                ) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// One connection, with its one request.
async fn call<E: Endpoints>(stream: TcpStream, endpoints: Arc<E>) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let endpoints = endpoints.clone();
        async move {
            let answer = endpoints.answer(Asked::from(&request)).await;
            Ok::<_, Infallible>(answer.into_response())
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CALL, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "an HTTP call broke off"),
        Err(_) => debug!("an HTTP call took too long"),
    }
}

impl<B> From<&Request<B>> for Asked {
    fn from(request: &Request<B>) -> Self {
        let header = |name| {
            let value = request.headers().get(name);
            let text = value.and_then(|it| it.to_str().ok());
            text.unwrap_or_default().to_owned()
        };
        Self {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            accept: header(ACCEPT),
            host: header(HOST),
        }
    }
}

impl Asked {
    /// Whether it only wants to know.
    pub fn is_get(&self) -> bool {
        [Method::GET, Method::HEAD].contains(&self.method)
    }

    /// Whether we are called by a name or an address that can only be this machine's. A page of another site that has a name of
    /// its own lead here is not.
    pub fn is_for_loopback(&self) -> bool {
        let host = self.host.as_str();
        let is_port = |it: &str| it.bytes().all(|it| it.is_ascii_digit());
        let name = match host.rsplit_once(':') {
            Some((name, port)) if is_port(port) => name,
            _ => host,
        };
        let address = name.trim_start_matches('[').trim_end_matches(']').parse();
        name == "localhost" || address.is_ok_and(|it: IpAddr| it.is_loopback())
    }

    /// Whether the asker is a program that understands JSON.
    pub fn wants_json(&self) -> bool {
        self.accept.contains("application/json")
    }
}

/// How many connections each address has.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection's place, given back when dropped.
struct Place {
    places: Places,
    of: IpAddr,
}

impl Places {
    fn claim(&self, of: IpAddr) -> Option<Place> {
        let of = of.to_canonical();
        let mut taken = self.taken();
        let taken = taken.entry(of).or_default();
        (*taken < MAX_CALLS_OF_ONE).then(|| {
            *taken += 1;
            Place {
                places: self.clone(),
                of,
            }
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

/// What every answer says: a page of ours may load from here alone, and nobody may put it into theirs.
const ALWAYS: [(HeaderName, &str); 4] = [
    (CACHE_CONTROL, "no-store"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
    ),
    (REFERRER_POLICY, "no-referrer"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
];
/// Connections at a time; others wait.
const MAX_CALLS: usize = 64;
/// Connections at a time of one address; others are closed, so that no pod has all places.
const MAX_CALLS_OF_ONE: usize = 8;
/// How long the head of a request may take.
const HEADER: Duration = Duration::from_secs(5);
/// How long a connection may take in all.
const CALL: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 64;
/// Longest head of a request, in bytes.
const MAX_BUFFER: usize = 16 << 10;
/// How long to wait before the port is tried again, or the next connection.
const PAUSE: Duration = Duration::from_millis(100);
/// How often in vain before it is told: a predecessor takes a moment to let go.
const PATIENT_TRIES: u32 = 30;
