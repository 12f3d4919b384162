//! CORE: the head of a CONNECT: its authority, its headers, and what a refusal's status means.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::headers::{Baggage, Forwarded};
use crate::model::{Authority, AuthorityError, Identity};
use crate::trace_context::TraceContext;

/// What a client asks of a server.
#[derive(Clone, Debug)]
pub struct ConnectHead {
    /// Where to.
    pub authority: Authority,
    /// Who asks, as the asking side tells it.
    pub baggage: Option<Baggage>,
    /// The client's own address, as the asking side tells it.
    pub forwarded: Option<Forwarded>,
    /// The trace the connection belongs to.
    pub trace: Option<TraceContext>,
    /// The network the connection comes from; only in the inner CONNECT of a tunnel through a gateway.
    pub origin_network: Option<String>,
}

impl ConnectHead {
    /// A bare request for `authority`.
    pub fn new(authority: impl Into<Authority>) -> Self {
        Self {
            authority: authority.into(),
            baggage: None,
            forwarded: None,
            trace: None,
            origin_network: None,
        }
    }

    /// The plain CONNECT of the contract: method, authority and headers, no scheme and no path.
    ///
    /// # Errors
    /// A host name or header text that HTTP cannot carry.
    pub fn to_http(&self) -> Result<Request<()>, http::Error> {
        let uri: Uri = self.authority.to_string().try_into()?;
        let mut request = Request::builder().method(Method::CONNECT).uri(uri);
        let trace = self.trace.as_ref();
        let state = trace.and_then(|it| it.state.as_ref());
        let headers = [
            (BAGGAGE, self.baggage.as_ref().map(ToString::to_string)),
            (FORWARDED, self.forwarded.as_ref().map(ToString::to_string)),
            (TRACEPARENT, trace.map(|it| it.parent.to_string())),
            (TRACESTATE, state.map(|it| it.as_str().to_owned())),
            (FORWARDED_NETWORK, self.origin_network.clone()),
        ];
        for (name, value) in headers {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                request = request.header(name, HeaderValue::try_from(value)?);
            }
        }
        request.body(())
    }

    /// Reads a request; headers that are absent or malformed are `None`.
    ///
    /// # Errors
    /// [`Refusal::Method`] for anything but a plain CONNECT, [`Refusal::Authority`] for one that leads nowhere.
    pub fn from_http<B>(request: &Request<B>) -> Result<Self, Refusal> {
        if request.method() != Method::CONNECT || request.uri().path_and_query().is_some() {
            return Err(Refusal::Method);
        }
        let authority = request.uri().authority().map_or("", |a| a.as_str());
        let authority = authority.parse().map_err(Refusal::Authority)?;
        let headers = request.headers();
        Ok(Self {
            authority,
            baggage: baggage(headers),
            forwarded: single(headers, &FORWARDED).and_then(|text| text.parse().ok()),
            trace: TraceContext::of_headers(all(headers, &TRACEPARENT), all(headers, &TRACESTATE)),
            origin_network: single(headers, &FORWARDED_NETWORK).map(ToOwned::to_owned),
        })
    }
}

/// A CONNECT that arrived, with everything known about where from.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// What the client asks, in its own words.
    pub head: ConnectHead,
    /// Who the client is: proved by its certificate.
    pub peer: Identity,
    /// The address of ours the tunnel was opened to: a pod's, port 15008.
    pub local: SocketAddr,
    /// The address the tunnel came from: the client's own, or that of a waypoint or gateway before us.
    pub remote: SocketAddr,
}

/// Why a CONNECT is refused. The peer learns the status alone; the text is for our log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 400: not a CONNECT, or an extended one.
    #[error("only plain CONNECT is served here")]
    Method,
    /// 400: the authority cannot be read.
    #[error(transparent)]
    Authority(AuthorityError),
    /// 400: the authority is an address other than the one connected to.
    #[error("the authority is not the address of this tunnel")]
    AddressMismatch,
    /// 401: policy says no.
    #[error("denied by policy")]
    Denied,
    /// 503: no such workload, service or port, or the application did not accept.
    #[error("the destination cannot be reached")]
    Unreachable,
}

impl Refusal {
    /// The status that goes out.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Method | Self::Authority(_) | Self::AddressMismatch => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::UNAUTHORIZED,
            Self::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The response that opens a stream, with the destination's own baggage if it is told.
pub(super) fn accepted(of: Option<&Baggage>) -> Response<()> {
    let mut response = Response::new(());
    let value = of.and_then(|baggage| HeaderValue::try_from(baggage.to_string()).ok());
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        response.headers_mut().insert(BAGGAGE, value);
    }
    response
}

/// The response that refuses one.
pub(super) fn refused(refusal: &Refusal) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = refusal.status();
    response
}

/// All baggage lines as one; none if there is no line.
pub(super) fn baggage(headers: &HeaderMap) -> Option<Baggage> {
    let lines: Vec<_> = all(headers, &BAGGAGE).collect();
    (!lines.is_empty()).then(|| Baggage::parse(&lines.join(",")))
}

fn all<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter();
    lines.filter_map(|line| line.to_str().ok())
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = http::header::FORWARDED;
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_there_and_back() {
        let mut head = ConnectHead::new("10.71.2.12:7000".parse::<SocketAddr>().unwrap());
        head.baggage = Some(Baggage::parse("k8s.pod.name=a"));
        head.forwarded = "for=\"10.71.1.2:39994\"".parse().ok();
        let request = head.to_http().unwrap();
        assert_eq!(request.uri().to_string(), "10.71.2.12:7000");
        assert_eq!(request.headers()["baggage"], "k8s.pod.name=a");
        assert_eq!(request.headers()["forwarded"], "for=\"10.71.1.2:39994\"");
        assert_eq!(request.headers().len(), 2);
        let parsed = ConnectHead::from_http(&request).unwrap();
        assert_eq!(parsed.baggage, head.baggage);
        assert_eq!(parsed.forwarded, head.forwarded);
    }

    #[test]
    fn the_trace_is_carried_on_or_is_none() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
        let read = |parent: &'static str| {
            let mut request = ConnectHead::new("10.0.0.1:1".parse::<SocketAddr>().unwrap())
                .to_http()
                .unwrap();
            let headers = request.headers_mut();
            headers.append("traceparent", HeaderValue::from_static(parent));
            for line in ["a=1", "b=2"] {
                headers.append("tracestate", HeaderValue::from_static(line));
            }
            ConnectHead::from_http(&request).unwrap()
        };
        let sent = read(parent).to_http().unwrap();
        assert_eq!(sent.headers()["traceparent"], parent);
        assert_eq!(sent.headers()["tracestate"], "a=1,b=2");
        let sent = read("00-0AF7-1-01").to_http().unwrap();
        assert_eq!(sent.headers().len(), 0);
    }

    #[test]
    fn only_connect_with_an_authority() {
        let request =
            |method: Method, uri: &str| Request::builder().method(method).uri(uri).body(());
        let get = request(Method::GET, "http://10.0.0.1:80/").unwrap();
        assert_eq!(ConnectHead::from_http(&get).unwrap_err(), Refusal::Method);
        let bad = ConnectHead::from_http(&request(Method::CONNECT, "host").unwrap()).unwrap_err();
        assert_eq!(
            bad,
            Refusal::Authority(AuthorityError::NoPort("host".into()))
        );
        assert_eq!(bad.status(), 400);
    }

    #[test]
    fn several_baggage_lines_are_one_list() {
        let mut request = ConnectHead::new("10.0.0.1:1".parse::<SocketAddr>().unwrap())
            .to_http()
            .unwrap();
        for line in ["service.name=a", "cloud.region=r"] {
            request
                .headers_mut()
                .append("baggage", HeaderValue::from_static(line));
        }
        let baggage = ConnectHead::from_http(&request).unwrap().baggage.unwrap();
        assert_eq!(baggage.to_string(), "service.name=a,cloud.region=r");
    }
}
