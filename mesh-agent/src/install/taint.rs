//! EDGE: takes the not-ready taint from this node once its pods can be wired.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::keep::{IMPATIENCE, is_ready};
use crate::causes::causes;
use crate::cluster::kubernetes::Access;
use crate::cluster::kubernetes::node::{NOT_READY_TAINT, remove_not_ready_taint};
use crate::world::Command;

/// How long to wait before another attempt.
const PAUSE: Duration = Duration::from_secs(5);

/// Waits until an ADD could be served, and takes the taint away; tries again until it is gone.
pub async fn untaint(
    access: Access,
    node: String,
    world: mpsc::Sender<Command>,
    shutdown: CancellationToken,
) {
    let work = async {
        while !is_ready(&world).await {
            sleep(IMPATIENCE).await;
        }
        let mut told = false;
        loop {
            match remove_not_ready_taint(&access, &node).await {
                Ok(removed) => {
                    if removed {
                        info!(taint = NOT_READY_TAINT, "taint removed from this node");
                    }
                    return;
                }
                Err(error) if !told => {
                    told = true;
                    warn!(error = causes(&error), "the node keeps its taint");
                }
                Err(_) => {}
            }
            sleep(PAUSE).await;
        }
    };
    let _ = shutdown.run_until_cancelled(work).await;
    // A part that ends by itself would end the agent.
    shutdown.cancelled().await;
}
