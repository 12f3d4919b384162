//! `mesh-agent map`: the page of several agents, each asked every second by itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::agents::Place;
use super::page;
use crate::agent::until_stopped;
use crate::args::Map;
use crate::causes::causes;
use crate::clock;
use crate::http::{Address, Answer, Asked, Endpoints, Ports, Server};
use crate::telemetry::{Agent, Graph, merge};

/// How often an agent is asked.
const PERIOD: Duration = Duration::from_secs(1);

/// Serves the map until it is told to stop.
///
/// # Errors
/// It cannot listen.
pub async fn run(args: Map) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen {}", args.listen))?;
    let address = listener.local_addr()?;
    let mut asking = JoinSet::new();
    let agents = args.agents.into_iter().map(|it| Arc::new(Asking::from(it)));
    let agents: Vec<_> = agents.collect();
    for agent in &agents {
        asking.spawn(agent.clone().run());
    }
    let at = Address::At(address);
    let server = Server::new("--listen", at, Live(agents), &Ports::default());
    println!("http://{address}/map");
    tokio::select! {
        () = server.serve(&listener) => {}
        stopped = until_stopped() => drop(stopped?),
    }
    Ok(())
}

/// All agents that are asked.
struct Live(Vec<Arc<Asking>>);

impl Endpoints for Live {
    async fn answer(&self, mut asked: Asked) -> Answer {
        if asked.path == "/" {
            "/map".clone_into(&mut asked.path);
        }
        let graph = async || merge(self.0.iter().map(|it| it.known()).collect());
        let answer = page::answer(&asked, graph).await;
        answer.unwrap_or_else(|| Answer::not_found(page::PATHS))
    }
}

/// An agent that is asked, and what it said last.
struct Asking {
    place: Place,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    graph: Option<(Graph, Instant)>,
    error: Option<String>,
}

impl From<Place> for Asking {
    fn from(place: Place) -> Self {
        Self {
            place,
            known: Mutex::default(),
        }
    }
}

impl Asking {
    async fn run(self: Arc<Self>) {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            let told = self.place.ask().await;
            let mut known = self.lock();
            match told {
                Ok(graph) => {
                    *known = Known {
                        graph: Some((graph, clock::now())),
                        error: None,
                    }
                }
                Err(error) => known.error = Some(causes(&error)),
            }
        }
    }

    /// What it said last, with how old that is.
    fn known(&self) -> Graph {
        let known = self.lock();
        let Some((graph, at)) = &known.graph else {
            let nothing = Agent {
                name: self.place.to_string(),
                age_ms: None,
                error: known.error.clone(),
            };
            return Graph {
                agents: vec![nothing],
                ..Graph::default()
            };
        };
        let age = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut graph = graph.clone();
        for agent in &mut graph.agents {
            agent.age_ms = agent.age_ms.map(|it| it.saturating_add(age));
            agent.error = agent.error.take().or_else(|| known.error.clone());
        }
        graph
    }

    // Nothing panics while it is held.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
