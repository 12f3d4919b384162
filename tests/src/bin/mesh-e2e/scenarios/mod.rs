//! The scenarios, in the order they run.

mod authority;
mod churn;
mod enrol;
mod mesh_policies;
mod network_policies;
mod restart;
mod services;
mod smoke;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::report::Report;

/// A scenario: it is told by its steps, and held unless it ends with an error.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&Cluster, &mut Report) -> Result<()>,
}

/// All scenarios.
pub(crate) const ALL: &[Scenario] = &[
    smoke::SCENARIO,
    enrol::SCENARIO,
    network_policies::PLAIN,
    network_policies::MESH,
    mesh_policies::SCENARIO,
    services::PLAIN,
    services::MESH,
    restart::SCENARIO,
    churn::SCENARIO,
    authority::SCENARIO,
];
