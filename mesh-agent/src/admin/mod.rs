//! EDGE: the agent's socket for people: `mesh-agent trace`, `policies` and `status` ask, the running agent answers.

mod client;
mod protocol;
mod render;
mod server;

pub use client::{Asked, Error as ClientError, ask_status, policies, status, trace};
pub use protocol::{ADMIN_SOCKET, Refusal, Request, Response, VERSION};
pub use server::{AdminServer, Error, Sources, Tell};
