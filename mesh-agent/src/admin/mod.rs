//! EDGE: the agent's socket for people: `mesh-agent trace`, `flows`, `status` and the like ask, the running agent answers.

mod client;
mod protocol;
mod render;
mod server;

pub use client::{
    Asked, Error as ClientError, ask, ask_status, certificates, flows, log, metrics, policies,
    services, status, trace, tunnels, workloads,
};
pub use protocol::{ADMIN_SOCKET, Process, Refusal, Request, Response, VERSION};
pub use server::{AdminServer, Error, Sources, Tell};
