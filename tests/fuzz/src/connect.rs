//! Requests on a tunnel, as an authenticated peer can send them.

use std::str::FromStr;

use http::Request;
use mesh_agent::hbone::{Baggage, ConnectHead, Forwarded};
use mesh_agent::model::Authority;
use mesh_agent::trace_context::Traceparent;

/// Lines: a method, a URI, then headers as `name: value`.
pub fn connect(input: &[u8]) {
    let mut lines = input.split(|it| *it == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let mut request = Request::builder().method(line()).uri(line());
    for line in lines {
        let colon = line.iter().position(|it| *it == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
        request = request.header(name, value);
    }
    // What is no HTTP never gets past h2.
    let Ok(request) = request.body(()) else {
        return;
    };
    let Ok(head) = ConnectHead::from_http(&request) else {
        return;
    };
    goes_on(&head);
}

/// What was understood can be said again, and is understood as the same.
fn goes_on(head: &ConnectHead) {
    let request = head.to_http().expect("its parts came by HTTP");
    let again = ConnectHead::from_http(&request).expect("it was understood");
    assert_eq!(again.authority, head.authority);
    assert_eq!(again.trace, head.trace);
    let client = |it: &ConnectHead| it.forwarded.as_ref().map(|it| it.client);
    assert_eq!(client(&again), client(head));
    // Of baggage without one member that is understood, no line is left.
    assert_eq!(
        again.baggage.unwrap_or_default(),
        head.baggage.clone().unwrap_or_default()
    );

    same::<Authority>(&head.authority.to_string());
    if let Some(trace) = &head.trace {
        same::<Traceparent>(&trace.parent.to_string());
    }
    if let Some(forwarded) = &head.forwarded {
        let text = forwarded.to_string();
        text.parse::<Forwarded>().expect("it was written by us");
    }
    if let Some(baggage) = &head.baggage {
        let text = baggage.to_string();
        assert_eq!(Baggage::parse(&text).to_string(), text);
    }
}

fn same<T: FromStr<Err: std::fmt::Debug> + ToString>(text: &str) {
    let value: T = text.parse().expect("it was written by us");
    assert_eq!(value.to_string(), text);
}
