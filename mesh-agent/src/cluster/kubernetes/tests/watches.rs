//! While a source runs.

use std::time::Instant;

use tokio::time::sleep;

use super::super::node::{NOT_READY_TAINT, remove_not_ready_taint};
use super::*;

#[tokio::test]
async fn everything_is_told_in_order_then_synced_then_changes() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    let told = run.synced().await;
    let kinds: Vec<_> = told.iter().map(Resource::of).collect();
    assert_eq!(kinds, Resource::ALL);
    let health = run.until_health(is_live).await;
    assert_eq!(health.objects["Pod"], 1);

    put_pod(&server, "b", "10.0.0.2");
    run.until_has(&pod("b")).await;
    server.remove(Resource::Pod, "shop/a");
    assert_eq!(run.next().await, Event::Delete(pod("a")));
    put_pod(&server, "b", "10.0.0.3");
    let Event::Upsert(Object::Pod(it)) = run.next().await else {
        panic!()
    };
    assert_eq!(
        it.addresses,
        ["10.0.0.3".parse::<std::net::IpAddr>().unwrap()]
    );
    // A change of nothing that is used is no change.
    let mut namespace = named("", "shop");
    namespace["status"] = json!({"phase": "Active"});
    server.put(Resource::Namespace, namespace);
    run.is_quiet().await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let (server, state) = world().await;
    for i in 0..25 {
        put_pod(&server, &format!("p{i:02}"), &format!("10.0.1.{i}"));
    }
    server.world().page = Some(10);
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    assert_eq!(run.known.len(), 8 + 25);
    assert_eq!(server.world().asked("pods?", "continue="), 2);
}

#[tokio::test]
async fn a_list_that_expires_between_pages_is_asked_for_as_a_whole() {
    let (server, state) = world().await;
    for i in 0..25 {
        put_pod(&server, &format!("p{i:02}"), &format!("10.0.1.{i}"));
    }
    server.world().page = Some(10);
    server.world().expired_pages = 1;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    assert_eq!(run.known.len(), 8 + 25);
    let pods = server.world().requests.clone();
    let last = pods
        .iter()
        .rfind(|it| it.contains("pods?") && !it.contains("watch"));
    assert!(!last.unwrap().contains("limit"), "{last:?}");
}

#[tokio::test]
async fn what_happened_meanwhile_is_found_when_the_version_is_forgotten() {
    for by_event in [false, true] {
        let (server, state) = world().await;
        server.world().forgets_by_event = by_event;
        let mut run = Run::start(&server, state.path());
        run.synced().await;
        server.away(true);
        server.remove(Resource::Pod, "shop/a");
        server.remove(Resource::NetworkPolicy, "shop/one");
        put_pod(&server, "c", "10.0.0.1");
        server.forget();
        server.away(false);
        // The pod that is gone before the one that got its address.
        let mut of_pods = Vec::new();
        while of_pods.len() < 2 {
            let event = run.next().await;
            match &event {
                Event::Delete(Reference::Pod(_)) | Event::Upsert(Object::Pod(_)) => {
                    of_pods.push(event);
                }
                _ => {}
            }
        }
        assert_eq!(of_pods[0], Event::Delete(pod("a")));
        let policy = Resource::NetworkPolicy.reference("shop", "one");
        run.until_not(&policy).await;
        assert_eq!(run.known.len(), 7, "{:?}", run.names());
        run.until_health(is_live).await;
    }
}

#[tokio::test]
async fn a_cut_is_taken_up_without_a_list() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    run.until_health(is_live).await;
    let lists = |server: &Server| {
        let world = server.world();
        world.asked("pods?", "") - world.asked("pods?", "watch")
    };
    assert_eq!(lists(&server), 1);
    for i in 0..3 {
        server.cut();
        put_pod(&server, &format!("p{i}"), "10.0.0.2");
        run.until_has(&pod(&format!("p{i}"))).await;
    }
    assert_eq!(lists(&server), 1);
}

#[tokio::test]
async fn a_watch_that_is_silent_for_long_is_taken_up_anew() {
    let (server, state) = world().await;
    let hasty = Timing {
        silence: Duration::from_millis(30),
        settled: Duration::from_millis(10),
        ..timing()
    };
    let mut run = Run::with(&server, state.path(), hasty);
    run.synced().await;
    while server.world().asked("pods?", "watch") < 3 {
        run.is_quiet().await;
    }
    let asked = server.world().asked("pods?", "");
    assert_eq!(asked - server.world().asked("pods?", "watch"), 1);
    put_pod(&server, "b", "10.0.0.2");
    run.until_has(&pod("b")).await;
}

#[tokio::test]
async fn a_line_that_breaks_off_is_neither_lost_nor_half_read() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    for i in 0..5 {
        server.world().breaks_line = true;
        put_pod(&server, &format!("p{i}"), "10.0.0.2");
        run.until_has(&pod(&format!("p{i}"))).await;
    }
    assert!(run.left_out.is_empty());
}

#[tokio::test]
async fn a_bookmark_moves_the_version_on() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    run.until_health(is_live).await;
    put_pod(&server, "b", "10.0.0.2");
    run.until_has(&pod("b")).await;
    server.bookmark(Resource::Pod);
    server.bookmark(Resource::Pod);
    let version = server.world().requests.len();
    run.is_quiet().await;
    server.cut();
    put_pod(&server, "c", "10.0.0.3");
    run.until_has(&pod("c")).await;
    let requests = server.world().requests[version..].to_vec();
    let again = requests
        .iter()
        .find(|it| it.contains("pods?") && it.contains("watch"));
    // Eight objects from 11 on, pod b, and two bookmarks.
    assert!(again.unwrap().ends_with("resourceVersion=21"), "{again:?}");
}

#[tokio::test]
async fn garbage_leads_to_a_new_list() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    for line in [
        "<html>502 Bad Gateway</html>",
        r#"{"type":"ADDED","object":17}"#,
        r#"{"type":"ERROR","object":{"code":500,"message":"etcd is away"}}"#,
    ] {
        server.line(Resource::Pod, line);
        run.until_health(|it| it.last_error.is_some()).await;
        let name = format!("p{}", line.len());
        put_pod(&server, &name, "10.0.0.2");
        run.until_has(&pod(&name)).await;
    }
    run.until_health(is_live).await;
}

#[tokio::test]
async fn an_object_that_is_not_understood_stays_what_it_was() {
    let (server, state) = world().await;
    put_pod(&server, "bad", "10.0.0.300");
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    assert!(
        run.left_out["Pod shop/bad"].contains("status.podIPs[0]"),
        "{:?}",
        run.left_out
    );
    assert!(!run.known.contains_key(&pod("bad")));

    put_pod(&server, "a", "nowhere");
    run.until(|it| it.left_out.len() == 2).await;
    assert!(run.known.contains_key(&pod("a")));
    // A new list does not take for gone what it has and cannot be understood.
    server.forget();
    server.cut();
    put_pod(&server, "new", "10.0.0.9");
    run.until_has(&pod("new")).await;
    assert!(run.known.contains_key(&pod("a")));

    put_pod(&server, "bad", "10.0.0.3");
    run.until_has(&pod("bad")).await;
    server.remove(Resource::Pod, "shop/a");
    run.until_not(&pod("a")).await;
    assert!(run.left_out.is_empty(), "{:?}", run.left_out);

    // Policies are never left out: what of them is not understood allows nothing.
    let mut policy = named("shop", "odd");
    policy["spec"] = json!({"podSelector": {}, "ingres": []});
    server.put(Resource::NetworkPolicy, policy);
    let reference = Resource::NetworkPolicy.reference("shop", "odd");
    run.until_has(&reference).await;
    let Object::NetworkPolicy(it) = &run.known[&reference] else {
        panic!()
    };
    assert_eq!(
        (it.caveats.len(), it.ingress.as_deref()),
        (1, Some(&[][..]))
    );
}

#[tokio::test]
async fn a_kind_that_is_not_served_is_waited_for() {
    let (server, state) = world().await;
    let istio = [Resource::PeerAuthentication, Resource::AuthorizationPolicy];
    server.world().absent.extend(istio);
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    let health = run.until_health(is_live).await;
    assert_eq!(health.absent, ["PeerAuthentication", "AuthorizationPolicy"]);
    server.world().absent.clear();
    for resource in istio {
        run.until_has(&resource.reference("shop", "one")).await;
    }
    assert_eq!(
        run.until_health(|it| it.absent.is_empty()).await.state,
        SourceState::Live
    );

    // A server that denies them for a moment has not deleted them; one that insists has.
    server.world().absent.extend(istio);
    server.cut();
    run.until_health(|it| it.absent.len() == 2).await;
    run.is_quiet().await;
    for resource in istio {
        run.until_not(&resource.reference("shop", "one")).await;
    }
    assert_eq!(run.known.len(), 6);
}

#[tokio::test]
async fn a_kind_that_may_not_be_seen_keeps_all_from_being_told() {
    let (server, state) = world().await;
    server.world().forbidden.insert(Resource::NetworkPolicy);
    let mut run = Run::start(&server, state.path());
    let health = run.until_health(|it| it.last_error.is_some()).await;
    assert!(
        health
            .last_error
            .unwrap()
            .error
            .starts_with("NetworkPolicy: 403")
    );
    run.is_quiet().await;
    server.world().forbidden.clear();
    run.synced().await;
    run.until_health(is_live).await;
}

#[tokio::test]
async fn while_the_server_is_away_nothing_changes() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    server.away(true);
    run.until_health(is_stale).await;
    run.is_quiet().await;
    put_pod(&server, "b", "10.0.0.2");
    server.away(false);
    run.until_has(&pod("b")).await;
    assert_eq!(run.known.len(), 9);
    run.until_health(is_live).await;
}

#[tokio::test]
async fn once_one_kind_is_answered_none_waits_out_its_pause() {
    let (server, state) = world().await;
    let timing = Timing {
        first_retry: Duration::from_millis(400),
        last_retry: PATIENCE,
        ..timing()
    };
    let mut run = Run::with(&server, state.path(), timing);
    run.synced().await;
    server.away(true);
    run.until_health(is_stale).await;
    // Pauses grow to several seconds.
    sleep(Duration::from_secs(3)).await;
    server.away(false);
    let before = server.world().asked("watch", "");
    while server.world().asked("watch", "") == before {
        sleep(Duration::from_millis(5)).await;
    }
    let answered = Instant::now();
    run.until_health(is_live).await;
    let took = answered.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[tokio::test]
async fn an_older_version_of_a_kind_will_do() {
    let (server, state) = world().await;
    let older = [Resource::EndpointSlice, Resource::AuthorizationPolicy];
    server.world().older.extend(older);
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    assert_eq!(run.known.len(), 8);
    assert!(run.until_health(is_live).await.absent.is_empty());
    server.remove(Resource::EndpointSlice, "shop/web-1");
    let slice = Resource::EndpointSlice.reference("shop", "web-1");
    run.until_not(&slice).await;
    assert_eq!(
        server.world().asked("/discovery.k8s.io/v1beta1/", "watch"),
        1
    );
}

#[tokio::test]
async fn a_token_that_is_exchanged_is_read_again() {
    let (server, state) = world().await;
    let token = state.path().join("token");
    std::fs::write(&token, "one").unwrap();
    server.world().token = Some("one");
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    run.until_health(is_live).await;
    server.world().token = Some("two");
    server.cut();
    let health = run.until_health(is_stale).await;
    assert!(health.last_error.unwrap().error.contains("401"));
    std::fs::write(&token, "two").unwrap();
    run.until_health(is_live).await;
    put_pod(&server, "b", "10.0.0.2");
    run.until_has(&pod("b")).await;
}

#[tokio::test]
async fn the_taint_is_removed_and_no_other() {
    let (server, state) = world().await;
    let access = Access::Kubeconfig(server.kubeconfig(state.path()));
    let taints = json!([
        {"key": NOT_READY_TAINT, "effect": "NoSchedule"},
        {"key": "other", "effect": "NoExecute", "value": "x"},
    ]);
    server.put(
        Resource::Node,
        json!({"metadata": {"name": "n1"}, "spec": {"taints": taints}}),
    );
    server.world().conflicts = 2;
    assert!(remove_not_ready_taint(&access, "n1").await.unwrap());
    let left = server.object(Resource::Node, "n1")["spec"]["taints"].clone();
    assert_eq!(
        left,
        json!([{"key": "other", "effect": "NoExecute", "value": "x"}])
    );
    assert!(!remove_not_ready_taint(&access, "n1").await.unwrap());
    assert_eq!(server.world().asked("PATCH", ""), 3);
    assert!(remove_not_ready_taint(&access, "none").await.is_err());
}
