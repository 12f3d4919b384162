//! An OpenTelemetry collector that keeps what it is told: OTLP over gRPC, with the messages as the project's own crate has
//! them, so that the agents' are read by somebody else.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use prost::Message;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::netns::Netns;

/// Attributes, with numbers as text.
pub type Attributes = BTreeMap<String, String>;

/// A span, as it came.
#[derive(Clone, Debug)]
pub struct Span {
    /// Of who told.
    pub resource: Attributes,
    /// As in the header, as are the ids below; empty for none.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// Of the span that called.
    pub parent: String,
    /// Header `tracestate`.
    pub state: String,
    /// 2 for a server, 3 for a client.
    pub kind: i32,
    /// In nanoseconds.
    pub duration: u64,
    /// What is told of it.
    pub attributes: Attributes,
    /// What went wrong, if its status is an error.
    pub error: Option<String>,
}

/// A log record, as it came.
#[derive(Clone, Debug)]
pub struct Log {
    /// Of who told.
    pub resource: Attributes,
    /// As in the header; empty for none.
    pub trace: String,
    /// The same.
    pub span: String,
    /// What happened.
    pub event: String,
    /// `INFO`, `WARN` or `ERROR`.
    pub severity: String,
    /// What is told of it.
    pub attributes: Attributes,
}

/// What collectors were told; shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Store(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    told: Mutex<(Vec<Span>, Vec<Log>)>,
    refuses_logs: AtomicBool,
}

impl Store {
    /// The spans, in the order in which they came.
    pub fn spans(&self) -> Vec<Span> {
        self.told().0.clone()
    }

    /// The log records.
    pub fn logs(&self) -> Vec<Log> {
        self.told().1.clone()
    }

    /// Forgets what was told.
    pub fn clear(&self) {
        *self.told() = Default::default();
    }

    /// From now on answers that there is no such service as one for logs, or takes them.
    pub fn refuse_logs(&self, refuses: bool) {
        self.0.refuses_logs.store(refuses, Ordering::Relaxed);
    }

    fn told(&self) -> MutexGuard<'_, (Vec<Span>, Vec<Log>)> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message; no if it is for a service that is not there.
    fn take(&self, path: &str, message: &[u8]) -> Result<bool> {
        match path {
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => {
                let message = ExportTraceServiceRequest::decode(message)?;
                for of in message.resource_spans {
                    let resource = resource(of.resource.as_ref())?;
                    let spans = of.scope_spans.into_iter().flat_map(|it| it.spans);
                    let spans = spans.map(|it| span(&resource, it));
                    self.told().0.extend(spans);
                }
                Ok(true)
            }
            "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
                if !self.0.refuses_logs.load(Ordering::Relaxed) =>
            {
                let message = ExportLogsServiceRequest::decode(message)?;
                for of in message.resource_logs {
                    let resource = resource(of.resource.as_ref())?;
                    let logs = of.scope_logs.into_iter().flat_map(|it| it.log_records);
                    let logs = logs.map(|it| log(&resource, it));
                    self.told().1.extend(logs);
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// A collector; ends when dropped, with its connections.
#[derive(Debug)]
pub struct Collector {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Serves an address inside a network namespace.
    pub fn start(netns: &Netns, at: SocketAddr, store: &Store) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind(at));
        let listener = listener.with_context(|| format!("cannot listen at {at}"))?;
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let store = store.clone();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    result = accept(listener, store) => panic!("the collector: {result:?}"),
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, store: Store) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let store = store.clone();
        connections.spawn(async move {
            let mut connection = h2::server::handshake(stream).await?;
            let mut calls = JoinSet::new();
            while let Some(accepted) = connection.accept().await {
                let (request, respond) = accepted?;
                calls.spawn(answer(request, respond, store.clone()));
            }
            anyhow::Ok(())
        });
    }
}

/// One call of gRPC over HTTP/2: a message behind five bytes of prefix, and a status in the trailers.
async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    store: Store,
) -> Result<()> {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    ensure!(bytes.len() >= 5 && bytes[0] == 0, "compressed, or no gRPC");
    let taken = store.take(&path, &bytes[5..]);
    let status = match &taken {
        Ok(true) => 0,
        Ok(false) => 12,
        Err(_) => 3,
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    let response = Response::builder().header("content-type", "application/grpc");
    let mut stream = respond.send_response(response.body(())?, false)?;
    if status == 0 {
        stream.send_data(Bytes::from_static(&[0; 5]), false)?;
    }
    stream.send_trailers(trailers)?;
    taken.map(drop)
}

fn resource(it: Option<&Resource>) -> Result<Attributes> {
    Ok(attributes(&it.context("no resource")?.attributes))
}

fn span(resource: &Attributes, it: trace::Span) -> Span {
    let failed = |it: &trace::Status| it.code == trace::status::StatusCode::Error as i32;
    Span {
        resource: resource.clone(),
        trace: hex(&it.trace_id),
        id: hex(&it.span_id),
        parent: hex(&it.parent_span_id),
        state: it.trace_state,
        kind: it.kind,
        duration: it.end_time_unix_nano - it.start_time_unix_nano,
        attributes: attributes(&it.attributes),
        error: it.status.filter(failed).map(|it| it.message),
    }
}

fn log(resource: &Attributes, it: LogRecord) -> Log {
    Log {
        resource: resource.clone(),
        trace: hex(&it.trace_id),
        span: hex(&it.span_id),
        event: it.event_name,
        severity: it.severity_text,
        attributes: attributes(&it.attributes),
    }
}

fn attributes(all: &[KeyValue]) -> Attributes {
    let value = |it: Option<&AnyValue>| match it.and_then(|it| it.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let all = all.iter();
    all.map(|it| (it.key.clone(), value(it.value.as_ref())))
        .collect()
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
