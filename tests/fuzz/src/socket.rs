//! Messages on the socket between plugin and agent, each read by the other side.

use mesh_agent::cni_server;
use mesh_cni::agent;
use mesh_cni::plan::{Ipv6, plan};
use mesh_common::cni::{Attachment, Envelope, Response, VERSION};
use serde::Serialize;
use serde_json::to_vec;

/// One line, for both sides.
pub fn socket(line: &[u8]) {
    match cni_server::parse(line) {
        Ok(request) => {
            let again = cni_server::parse(&written(&request));
            assert_eq!(again.expect("it was parsed"), request);
        }
        Err(refusal) => assert!(!refusal.message.is_empty() && !refusal.remedy.is_empty()),
    }
    match agent::decode(line) {
        Ok(response) => {
            assert_eq!(agent::decode(&written(&response)).as_ref(), Ok(&response));
            wired(&response);
        }
        Err(what) => assert!(!what.is_empty()),
    }
}

fn written(message: &impl Serialize) -> Vec<u8> {
    let version = VERSION;
    to_vec(&Envelope { version, message }).expect("messages always become JSON")
}

/// An agent that means harm, or another program at its place, may answer with any addresses.
fn wired(response: &Response) {
    let Response::Reserved(wiring) = response else {
        return;
    };
    let attachment = Attachment {
        container: "c1".to_owned(),
        ifname: "eth0".to_owned(),
    };
    for step in plan(&attachment, wiring, Ipv6::Present) {
        let _ = step.undo();
    }
}
