//! EDGE: the agent's socket for people: `mesh-agent trace`, `flows`, `metrics`, `status` and others ask, the running agent answers.

mod client;
mod protocol;
mod render;
mod server;

pub use client::{
    Asked, Error as ClientError, ask_status, flows, log, metrics, policies, status, trace,
};
pub use protocol::{ADMIN_SOCKET, Refusal, Request, Response, VERSION};
pub use server::{AdminServer, Error, Sources, Tell};
