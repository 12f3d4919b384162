//! `mesh-agent map`: the page of several agents, each asked every second by itself, or 20 a second of many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::agents::{Error, Way};
use super::cluster::Cluster;
use super::page;
use crate::agent::until_stopped;
use crate::args::Map;
use crate::causes::causes;
use crate::clock;
use crate::http::{Address, Answer, Asked, Endpoints, Ports, Server};
use crate::telemetry::{Agent, Graph, merge};

/// How often an agent is asked, unless there are many.
const PERIOD: Duration = Duration::from_secs(1);
/// What of a second each takes, so that a large cluster's API server is asked no more than that.
const SHARE: Duration = Duration::from_millis(50);

/// Serves the map until it is told to stop.
///
/// # Errors
/// It cannot listen, or the cluster's agents are not found.
pub async fn run(args: Map) -> anyhow::Result<()> {
    let cluster = if args.agents.is_empty() {
        Some(Cluster::find(&args).await?)
    } else {
        None
    };
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("--listen {}", args.listen))?;
    let address = listener.local_addr()?;
    let live = Arc::new(Live::default());
    let mut tasks = JoinSet::new();
    for place in args.agents {
        let asking = live.begin(place.to_string(), Way::Place(place));
        tasks.spawn(ask(live.clone(), asking));
    }
    if let Some(cluster) = cluster {
        tasks.spawn(cluster.follow(live.clone()));
    }
    let at = Address::At(address);
    let server = Server::new("--listen", at, Shown(live), &Ports::default());
    println!("http://{address}/map");
    tokio::select! {
        () = server.serve(&listener) => {}
        stopped = until_stopped() => drop(stopped?),
    }
    Ok(())
}

/// All agents that are asked, and what is known from them.
#[derive(Default)]
pub(super) struct Live {
    agents: Mutex<BTreeMap<String, Arc<Asking>>>,
    /// Why others may be missing.
    trouble: Mutex<Option<Agent>>,
}

impl Live {
    /// An agent that is to be asked from now on; what was known by its name stays known.
    pub(super) fn begin(&self, name: String, way: Way) -> Arc<Asking> {
        let mut agents = lock(&self.agents);
        let known = agents.get(&name).map(|it| lock(&it.known).clone());
        let asking = Arc::new(Asking {
            name: name.clone(),
            way,
            known: Mutex::new(known.unwrap_or_default()),
        });
        agents.insert(name, asking.clone());
        asking
    }

    /// An agent that is there no more.
    pub(super) fn end(&self, name: &str) {
        lock(&self.agents).remove(name);
    }

    /// Why agents may be missing, and who should have told of them.
    pub(super) fn trouble(&self, trouble: Option<Agent>) {
        *lock(&self.trouble) = trouble;
    }

    fn pause(&self) -> Duration {
        let agents = u32::try_from(lock(&self.agents).len()).unwrap_or(u32::MAX);
        PERIOD.max(SHARE.saturating_mul(agents))
    }

    fn graph(&self) -> Graph {
        let mut graphs: Vec<_> = lock(&self.agents).values().map(|it| it.known()).collect();
        graphs.push(Graph {
            agents: lock(&self.trouble).iter().cloned().collect(),
            ..Graph::default()
        });
        merge(graphs)
    }
}

/// What is served.
struct Shown(Arc<Live>);

impl Endpoints for Shown {
    async fn answer(&self, mut asked: Asked) -> Answer {
        if asked.path == "/" {
            "/map".clone_into(&mut asked.path);
        }
        let answer = page::answer(&asked, async || self.0.graph()).await;
        answer.unwrap_or_else(|| Answer::not_found(page::PATHS))
    }
}

/// An agent that is asked, and what it said last.
pub(super) struct Asking {
    name: String,
    way: Way,
    known: Mutex<Known>,
}

#[derive(Clone, Default)]
struct Known {
    graph: Option<(Graph, Instant)>,
    error: Option<String>,
}

/// Asks an agent again and again.
pub(super) async fn ask(live: Arc<Live>, asking: Arc<Asking>) {
    loop {
        asking.take_in(asking.way.ask().await);
        sleep(live.pause()).await;
    }
}

impl Asking {
    fn take_in(&self, told: Result<Graph, Error>) {
        let mut known = lock(&self.known);
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

    /// What it said last, with how old that is.
    fn known(&self) -> Graph {
        let known = lock(&self.known);
        let Some((graph, at)) = &known.graph else {
            let nothing = Agent {
                name: self.name.clone(),
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
}

// Nothing panics while it is held.
fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way() -> Way {
        Way::Place("/nowhere".parse().unwrap())
    }

    fn told(name: &str) -> Graph {
        let agent = Agent {
            name: name.to_owned(),
            age_ms: Some(0),
            error: None,
        };
        Graph {
            agents: vec![agent],
            ..Graph::default()
        }
    }

    #[test]
    fn what_a_nodes_agent_has_said_outlives_it_until_the_next_speaks() {
        let live = Live::default();
        let old = live.begin("n1".to_owned(), way());
        assert_eq!(live.graph().agents[0].age_ms, None);
        old.take_in(Ok(told("n1")));
        let new = live.begin("n1".to_owned(), way());
        old.take_in(Err(Error::Late));
        let [agent] = &live.graph().agents[..] else {
            panic!("one agent");
        };
        assert!(agent.age_ms.is_some() && agent.error.is_none(), "{agent:?}");
        new.take_in(Err(Error::Absent("pod b is Pending".to_owned())));
        let agents = live.graph().agents;
        assert!(agents[0].age_ms.is_some(), "{agents:?}");
        assert_eq!(agents[0].error.as_deref(), Some("pod b is Pending"));
        live.end("n1");
        assert_eq!(live.graph().agents, []);
    }

    #[test]
    fn who_should_have_told_of_agents_is_told_beside_them() {
        let live = Live::default();
        let trouble = Agent {
            name: "Kubernetes API".to_owned(),
            age_ms: None,
            error: Some("no answer".to_owned()),
        };
        live.trouble(Some(trouble.clone()));
        assert_eq!(live.graph().agents, [trouble]);
        live.trouble(None);
        assert_eq!(live.graph().agents, []);
    }

    #[test]
    fn many_agents_are_asked_less_often() {
        let live = Live::default();
        assert_eq!(live.pause(), PERIOD);
        for number in 0..100 {
            live.begin(number.to_string(), way());
        }
        assert_eq!(live.pause(), Duration::from_secs(5));
    }
}
