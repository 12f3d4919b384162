//! How a source starts, with what an earlier run has left.

use std::fs;

use super::*;

#[tokio::test]
async fn a_start_while_the_server_is_away_tells_the_stored_world_then_the_difference() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    let before = run.known.clone();
    stored(state.path(), r#""name":"a""#).await;
    drop(run);

    server.away(true);
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    assert_eq!(run.known, before);
    let health = run.until_health(is_stale).await;
    assert!(
        health.as_of.is_some() && health.last_error.is_some(),
        "{health:?}"
    );
    run.is_quiet().await;

    server.remove(Resource::Pod, "shop/a");
    put_pod(&server, "b", "10.0.0.1");
    server.away(false);
    assert_eq!(run.next().await, Event::Delete(pod("a")));
    run.until_has(&pod("b")).await;
    run.until_health(is_live).await;
    run.is_quiet().await;
    assert_eq!(run.known.len(), 8);
    // And the difference is stored, too.
    stored(state.path(), r#""name":"b""#).await;
}

#[tokio::test]
async fn a_start_with_a_server_tells_nothing_that_was_stored() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    stored(state.path(), r#""name":"a""#).await;
    drop(run);
    server.remove(Resource::Pod, "shop/a");
    let slow = Timing {
        patience: PATIENCE,
        ..timing()
    };
    let mut run = Run::with(&server, state.path(), slow);
    run.synced().await;
    assert_eq!(run.known.len(), 7);
    run.is_quiet().await;
}

#[tokio::test]
async fn without_a_stored_world_nothing_is_told_before_the_server_answers() {
    let (server, state) = world().await;
    server.away(true);
    let mut run = Run::start(&server, state.path());
    run.is_quiet().await;
    run.until_health(|it| it.last_error.is_some()).await;
    server.away(false);
    run.synced().await;
    assert_eq!(run.known.len(), 8);
}

#[tokio::test]
async fn a_damaged_store_is_set_aside_and_never_used() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    stored(state.path(), r#""crc32""#).await;
    drop(run);
    server.away(true);
    let file = state.path().join("kubernetes.json");
    let whole = fs::read(&file).unwrap();
    let cut = |at: usize| whole[..at].to_vec();
    let mut flipped = whole.clone();
    let at = flipped.windows(8).position(|it| it == b"10.0.0.1").unwrap();
    flipped[at + 7] = b'2';
    let lines: Vec<_> = whole.split_inclusive(|it| *it == b'\n').collect();
    let damages = [
        Vec::new(),
        cut(whole.len() / 2),
        cut(whole.len() - 3),
        flipped,
        lines[1..].concat(),
        lines[..lines.len() - 1].concat(),
        b"{}\n".to_vec(),
        b"\xff\xfe\n\n".to_vec(),
    ];
    for damaged in damages {
        fs::write(&file, &damaged).unwrap();
        let mut run = Run::start(&server, state.path());
        run.until_health(|it| it.last_error.is_some()).await;
        run.is_quiet().await;
        assert!(!file.exists());
        let aside = state.path().join("kubernetes.json.damaged");
        assert_eq!(fs::read(aside).unwrap(), damaged);
    }
    // The whole one still works.
    fs::write(&file, &whole).unwrap();
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    assert_eq!(run.known.len(), 8);
}

#[tokio::test]
async fn a_server_that_starts_and_does_not_know_a_kind_yet_does_not_delete_it() {
    let (server, state) = world().await;
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    stored(state.path(), "AuthorizationPolicy").await;
    drop(run);
    server.world().absent.insert(Resource::AuthorizationPolicy);
    let mut run = Run::start(&server, state.path());
    run.synced().await;
    let policy = Resource::AuthorizationPolicy.reference("shop", "one");
    assert!(run.known.contains_key(&policy));
    run.until_health(is_stale).await;
    server.world().absent.clear();
    run.until_health(is_live).await;
    assert!(run.known.contains_key(&policy));
}

#[tokio::test]
async fn what_is_wrong_from_the_beginning_is_told_at_once() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("nowhere");
    let options = Options {
        access: Access::Kubeconfig(path),
        state: state.path().to_owned(),
        timing: timing(),
    };
    let (events, _told) = mpsc::channel(1);
    let (health, _) = watch::channel(Health::starting("kubernetes", 0));
    let ended = run(options, events, health, CancellationToken::new()).await;
    let error = ended.unwrap_err().to_string();
    assert!(
        error.contains("nowhere") && error.contains("--kubeconfig"),
        "{error}"
    );
}
