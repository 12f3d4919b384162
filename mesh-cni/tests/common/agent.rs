//! An agent that keeps attachments in memory and programs nothing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use mesh_common::cni::{Attachment, Envelope, Reason, Refusal, Request, Response, VERSION, Wiring};

/// What the agent does instead of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Fine,
    /// Refuses every request of this name for this reason.
    Refuses(&'static str, Reason),
    /// Closes the connection at every request of this name.
    Closes(&'static str),
    /// Answers with another version of the protocol.
    Future,
}

/// What the agent knows.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Every request, in order.
    pub(crate) requests: Vec<Request>,
    /// Reserved, not attached.
    pub(crate) reserved: Vec<Attachment>,
    /// Attached.
    pub(crate) attached: BTreeMap<Attachment, Wiring>,
    next: u16,
}

pub(crate) struct Agent {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) mood: Arc<Mutex<Mood>>,
    socket: std::path::PathBuf,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts an agent that gives out an address of each family.
    pub(crate) fn start(socket: &Path) -> Self {
        Self::start_with(socket, Families::Both)
    }

    pub(crate) fn start_with(socket: &Path, families: Families) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let mut agent = Self {
            ledger: Arc::default(),
            mood: Arc::new(Mutex::new(Mood::Fine)),
            socket: socket.to_owned(),
            stopping: Arc::default(),
            acceptor: None,
        };
        let connection = Connection {
            ledger: Arc::clone(&agent.ledger),
            mood: Arc::clone(&agent.mood),
            families,
        };
        let stopping = Arc::clone(&agent.stopping);
        agent.acceptor = Some(thread::spawn(move || {
            let mut threads = Vec::new();
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let connection = connection.clone();
                threads.push(thread::spawn(move || connection.serve(&stream.unwrap())));
            }
            for thread in threads {
                thread.join().unwrap();
            }
        }));
        agent
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Waits until every connection is over, as a reservation is given back after its connection ends.
    pub(crate) fn stop(mut self) -> Ledger {
        self.join();
        std::mem::take(&mut self.ledger.lock().unwrap())
    }

    fn join(&mut self) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        self.stopping.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.socket));
        let joined = acceptor.join();
        let _may_be_gone = std::fs::remove_file(&self.socket);
        if !thread::panicking() {
            joined.unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.join();
    }
}

/// Which addresses are given out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Families {
    V4,
    Both,
}

#[derive(Clone)]
struct Connection {
    ledger: Arc<Mutex<Ledger>>,
    mood: Arc<Mutex<Mood>>,
    families: Families,
}

impl Connection {
    fn serve(&self, stream: &UnixStream) {
        let mut pending = None;
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { break };
            let envelope: Envelope<Request> = serde_json::from_str(&line).unwrap();
            assert_eq!(envelope.version, VERSION);
            let Some(message) = self.answer(envelope.message, &mut pending) else {
                break;
            };
            let future = *self.mood.lock().unwrap() == Mood::Future;
            let version = VERSION + u32::from(future);
            let mut line = serde_json::to_string(&Envelope { version, message }).unwrap();
            line.push('\n');
            if (&*stream).write_all(line.as_bytes()).is_err() {
                break;
            }
        }
        if let Some((attachment, _)) = pending {
            let reserved = &mut self.ledger.lock().unwrap().reserved;
            reserved.retain(|other| *other != attachment);
        }
    }

    fn answer(
        &self,
        request: Request,
        pending: &mut Option<(Attachment, Wiring)>,
    ) -> Option<Response> {
        let mut ledger = self.ledger.lock().unwrap();
        ledger.requests.push(request.clone());
        match *self.mood.lock().unwrap() {
            Mood::Refuses(name, reason) if name == name_of(&request) => {
                return Some(refusal(reason));
            }
            Mood::Closes(name) if name == name_of(&request) => return None,
            _ => {}
        }
        Some(match request {
            Request::Reserve { attachment, .. } => {
                if ledger.attached.contains_key(&attachment) {
                    return Some(refusal(Reason::Invalid));
                }
                ledger.next += 1;
                let wiring = self.wiring(ledger.next);
                ledger.reserved.push(attachment.clone());
                *pending = Some((attachment, wiring.clone()));
                Response::Reserved(wiring)
            }
            Request::Attach { .. } => {
                let (attachment, wiring) = pending.take().unwrap();
                ledger.reserved.retain(|other| *other != attachment);
                ledger.attached.insert(attachment, wiring);
                Response::Done
            }
            Request::Release { attachment } => {
                ledger.attached.remove(&attachment);
                Response::Done
            }
            Request::Check { attachment } => match ledger.attached.get(&attachment) {
                Some(wiring) => Response::Reserved(wiring.clone()),
                None => refusal(Reason::Unknown),
            },
            Request::Collect { keep, .. } => {
                ledger
                    .attached
                    .retain(|attachment, _| keep.contains(attachment));
                Response::Done
            }
            Request::Status => Response::Done,
        })
    }

    fn wiring(&self, number: u16) -> Wiring {
        let [high, low] = number.to_be_bytes();
        let v4 = IpAddr::from(Ipv4Addr::new(10, 98, high, low));
        let v6 = IpAddr::from(Ipv6Addr::new(0xfd98, 0, 0, 0, 0, 0, 0, number));
        Wiring {
            addresses: match self.families {
                Families::V4 => vec![v4],
                Families::Both => vec![v4, v6],
            },
            mtu: 1400,
        }
    }
}

pub(crate) fn name_of(request: &Request) -> &'static str {
    match request {
        Request::Reserve { .. } => "Reserve",
        Request::Attach { .. } => "Attach",
        Request::Release { .. } => "Release",
        Request::Check { .. } => "Check",
        Request::Collect { .. } => "Collect",
        Request::Status => "Status",
    }
}

fn refusal(reason: Reason) -> Response {
    Response::Refused(Refusal {
        reason,
        message: format!("the test agent refuses: {reason:?}"),
        remedy: "ask another one".to_owned(),
    })
}
