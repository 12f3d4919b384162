//! What a server lets the agent see, as `mesh-agent check` tells it.

use super::*;
use crate::cluster::kubernetes::{Permission, Unreachable, permissions};

async fn asked(server: &Server, directory: &TempDir) -> Result<Vec<Permission>, Unreachable> {
    permissions(&Access::Kubeconfig(server.kubeconfig(directory.path()))).await
}

#[tokio::test]
async fn each_kind_is_listed_and_watched() {
    let (server, directory) = world().await;
    let granted = vec![Permission::Granted; Resource::ALL.len()];
    assert_eq!(asked(&server, &directory).await.unwrap(), granted);
    for resource in Resource::ALL {
        let path = resource.path(resource.versions()[0]);
        assert_eq!(server.world().asked(&path, "watch"), 1, "{path}");
    }
    server.world().older = [Resource::EndpointSlice].into();
    assert_eq!(asked(&server, &directory).await.unwrap(), granted);
}

#[tokio::test]
async fn what_is_denied_or_missing_is_named() {
    let (server, directory) = world().await;
    server.world().forbidden = [Resource::Pod].into();
    server.world().absent = [Resource::PeerAuthentication, Resource::NetworkPolicy].into();
    let mut asked = asked(&server, &directory).await.unwrap();
    asked.retain(|it| *it != Permission::Granted);
    let absent = |kind, is_optional| Permission::Absent { kind, is_optional };
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.contains(&absent("PeerAuthentication", true)));
    assert!(asked.contains(&absent("NetworkPolicy", false)));
    assert!(asked.iter().any(|it| {
        matches!(it, Permission::Denied { kind: "Pod", reason } if reason.contains("403"))
    }));
}

#[tokio::test]
async fn no_answer_is_no_denial() {
    let (server, directory) = world().await;
    server.world().token = Some("another");
    let error = asked(&server, &directory).await.unwrap_err();
    assert!(error.to_string().contains("401"), "{error}");
    server.world().is_away = true;
    let error = asked(&server, &directory).await.unwrap_err();
    assert!(matches!(error, Unreachable::Failed(_)), "{error}");
    let nowhere = Access::Kubeconfig(directory.path().join("none"));
    let error = permissions(&nowhere).await.unwrap_err();
    assert!(matches!(error, Unreachable::Access(_)), "{error}");
}
