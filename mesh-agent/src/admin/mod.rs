//! EDGE: the agent's socket for people: `mesh-agent trace` and `mesh-agent policies` ask, the running agent answers.

mod client;
mod protocol;
mod render;
mod server;

pub use client::{Asked, Error as ClientError, policies, trace};
pub use protocol::{ADMIN_SOCKET, Refusal, Request, Response, VERSION};
pub use server::{AdminServer, Error};
