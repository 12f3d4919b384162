//! The live map in a real browser: what it shows of two agents with traffic of all kinds, and how it bears 500 workloads.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::browser::Browser;
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::process::Process;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use serde_json::{Value, json};

const MAP: &str = "http://127.0.0.1:15080/map";
const WINDOW: (u32, u32) = (1280, 800);
const PORT: u16 = 8080;
/// How often bytes go around each connection.
const BEAT: Duration = Duration::from_millis(200);

type Applications = &'static [(&'static str, u8)];

/// Namespaces, whether they are of the mesh, and the applications in them with their replicas.
const WORLD: [(&str, bool, Applications); 4] = [
    (
        "shop",
        true,
        &[
            ("frontend", 4),
            ("cart", 3),
            ("checkout", 3),
            ("catalog", 4),
            ("payments", 3),
            ("search", 3),
        ],
    ),
    (
        "bank",
        true,
        &[("accounts", 3), ("ledger", 3), ("fraud", 2), ("cards", 4)],
    ),
    ("media", true, &[("images", 4), ("video", 3)]),
    ("legacy", false, &[("crm", 3), ("reports", 4), ("mail", 4)]),
];

/// From, to, and bytes at each beat. Replicas with odd numbers are on one node, with even ones on the
/// other.
const TRAFFIC: [(&str, &str, usize); 24] = [
    ("shop/frontend-1", "shop/cart-2", 24_000),
    ("shop/frontend-1", "shop/catalog-2", 60_000),
    ("shop/frontend-2", "shop/catalog-1", 48_000),
    ("shop/frontend-2", "shop/search-2", 3_000),
    ("shop/frontend-3", "shop/search-2", 9_000),
    ("shop/frontend-4", "shop/cart-3", 2_000),
    ("shop/cart-1", "shop/checkout-1", 4_000),
    ("shop/cart-2", "shop/checkout-3", 1_000),
    ("shop/checkout-1", "shop/payments-2", 6_000),
    ("shop/checkout-2", "shop/payments-2", 2_000),
    ("shop/payments-1", "bank/accounts-2", 8_000),
    ("shop/payments-3", "bank/cards-2", 900),
    ("shop/catalog-1", "media/images-2", 64_000),
    ("shop/catalog-3", "media/images-1", 30_000),
    ("bank/accounts-1", "bank/ledger-2", 12_000),
    ("bank/accounts-2", "bank/ledger-2", 7_000),
    ("bank/accounts-3", "bank/ledger-2", 700),
    ("bank/cards-1", "bank/fraud-1", 1_500),
    ("bank/cards-4", "bank/fraud-1", 400),
    ("media/video-1", "media/images-4", 20_000),
    ("legacy/crm-1", "bank/cards-2", 5_000),
    ("shop/frontend-4", "legacy/reports-2", 2_500),
    ("legacy/reports-3", "shop/search-1", 1_200),
    ("shop/checkout-3", "legacy/mail-1", 600),
];

/// The application that no policy allows to be asked by others than these.
const REFUSED: (&str, &str) = ("media/images-1", "bank/ledger-1");

#[test]
fn shows_who_speaks_with_whom() -> Result<()> {
    scenario("live_map", |lab| {
        let pods = world(lab)?;
        assert_eq!(pods.len(), 50);
        let node = lab.node("n1");
        let sockets = lab.nodes().iter().map(Node::admin_socket);
        let sockets: Vec<_> = sockets.map(|it| it.display().to_string()).collect();
        let _map = serve(lab, &sockets)?;
        let directory = lab.directory().join("chromium");
        let mut browser = Browser::start(node.netns(), &directory, WINDOW)?;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let traffic = scope.spawn(|| traffic(&pods, &stop));
            let seen = seen(&mut browser, &pods);
            stop.store(true, Ordering::Relaxed);
            let carried = traffic.join().expect("traffic does not panic");
            seen.and(carried)
        })?;
        an_agent_that_is_gone(lab, &mut browser)
    })
}

/// Makes all pods, and the policy that refuses one of them.
fn world(lab: &Lab) -> Result<BTreeMap<String, Pod<'_>>> {
    let mut pods = BTreeMap::new();
    for (namespace, is_of_mesh, applications) in WORLD {
        let builder = lab.namespace(namespace);
        let builder = if is_of_mesh {
            builder.ambient()
        } else {
            builder
        };
        builder.create()?;
        for (application, replicas) in applications {
            for number in 1..=*replicas {
                let name = format!("{application}-{number}");
                let pod = lab.pod(&name).namespace(namespace);
                let pod = pod.label("app", application).service_account(application);
                let pod = pod.on(["n2", "n1"][usize::from(number % 2)]).create()?;
                pods.insert(format!("{namespace}/{name}"), pod);
            }
        }
    }
    let accounts = "cluster.local/ns/bank/sa/accounts";
    lab.policy(
        "AuthorizationPolicy",
        "bank",
        "ledger-for-accounts",
        json!({
            "selector": {"matchLabels": {"app": "ledger"}},
            "action": "ALLOW",
            "rules": [{"from": [{"source": {"principals": [accounts]}}]}],
        }),
    )?;
    Ok(pods)
}

/// Carries bytes until it is told to stop.
fn traffic(pods: &BTreeMap<String, Pod<'_>>, stop: &AtomicBool) -> Result<()> {
    let mut servers = BTreeMap::new();
    let mut lines = Vec::new();
    for (from, to, bytes) in TRAFFIC {
        if !servers.contains_key(to) {
            servers.insert(to, Server::start(&pods[to], PORT, App::Echo)?);
        }
        let stream = pods[from].connect(pods[to].at(Family::V4, PORT));
        lines.push((
            stream.with_context(|| format!("{from} to {to}"))?,
            vec![7; bytes],
        ));
    }
    while !stop.load(Ordering::Relaxed) {
        for (stream, bytes) in &lines {
            echoes(stream, bytes)?;
        }
        sleep(BEAT);
    }
    Ok(())
}

/// Tries what is refused.
fn try_it(pods: &BTreeMap<String, Pod<'_>>) {
    let (from, to) = REFUSED;
    let tried = pods[from].connect(pods[to].at(Family::V4, PORT));
    let spoken = tried.and_then(|it| echoes(&it, b"may I?"));
    assert!(spoken.is_err(), "{to} answers {from}");
}

/// A cell of the map.
fn cell(id: &str) -> String {
    format!("[data-id=\"{id}\"]")
}

/// An expression: the part of the map that shows what is from one workload to another.
fn pair(part: &str, from: &str, to: &str) -> String {
    let key = Value::from(json!([from, to]).to_string());
    format!("[...document.querySelectorAll(\".{part}\")].find((it) => it.dataset.pair === {key})")
}

fn seen(browser: &mut Browser, pods: &BTreeMap<String, Pod<'_>>) -> Result<()> {
    try_it(pods);
    browser.open(MAP)?;
    browser.until("document.querySelectorAll(\"#cells .cell\").length >= 50")?;
    for id in pods.keys() {
        let found =
            browser.evaluate(&format!("Boolean(document.querySelector('{}'))", cell(id)))?;
        ensure!(found == true, "{id} is not on the map");
    }
    for (from, to, kind) in [
        ("shop/frontend-1", "shop/catalog-2", "tunnel"),
        ("shop/cart-1", "shop/checkout-1", "same_node"),
        ("legacy/crm-1", "bank/cards-2", "plain"),
    ] {
        let line = pair("edge", from, to);
        browser.until(&format!(
            "{line}?.classList.contains(\"{kind}\") && {line}.classList.contains(\"active\")"
        ))?;
        let mark = pair("mark", from, to);
        browser.until(&format!(
            "{mark}.querySelector(\"use\").getAttribute(\"href\") === \"#i-{kind}\""
        ))?;
        browser.until(&format!(
            "/[1-9].* .?B\\/s/.test({mark}.querySelector(\"title\").textContent)"
        ))?;
    }
    refusal(browser)?;
    // Kept for who reads of it.
    browser.until(&format!(
        "document.querySelectorAll(\".edge.active\").length >= {}",
        TRAFFIC.len()
    ))?;
    try_it(pods);
    browser.until(&format!(
        "{}?.classList.contains(\"recent\")",
        pair("mark", REFUSED.0, REFUSED.1)
    ))?;
    browser.click(&cell("bank/ledger-1"))?;
    browser.screenshot(&output("live-map-refusal.png"))?;
    browser.prefer("prefers-color-scheme", "dark")?;
    browser.click(&cell("shop/catalog-1"))?;
    browser.screenshot(&output("live-map-dark.png"))?;
    browser.prefer("prefers-color-scheme", "light")?;
    browser.press("Escape")?;
    browser.evaluate("document.activeElement.blur()")?;
    browser.screenshot(&output("live-map.png"))?;
    by_keyboard(browser)?;
    as_table(browser)?;
    closed_to_others(browser)
}

/// What a click tells of the refused.
fn refusal(browser: &mut Browser) -> Result<()> {
    let (from, to) = REFUSED;
    let mark = pair("mark", from, to);
    browser.until(&format!(
        "{mark}?.querySelector(\"use\").getAttribute(\"href\") === \"#i-refused\""
    ))?;
    browser.click(&cell(to))?;
    browser.until("!document.querySelector(\"#details\").hidden")?;
    let told = text(browser, "#details")?;
    for part in [
        to,
        from,
        "spiffe://cluster.local/ns/bank/sa/ledger",
        "AuthorizationPolicy bank/ledger-for-accounts",
        "Last refusals",
        "1 refused",
    ] {
        ensure!(told.contains(part), "{part:?} is not in {told}");
    }
    Ok(())
}

/// Tab to a workload, arrows to the next, Enter for details, Escape back to it.
fn by_keyboard(browser: &mut Browser) -> Result<()> {
    browser.evaluate("document.querySelector(\"#zoom-in\").focus()")?;
    browser.press("Tab")?;
    let focused = "document.activeElement.dataset.id";
    let first = browser.evaluate(focused)?;
    if !first.is_string() {
        let focused = browser.evaluate("document.activeElement.outerHTML.slice(0, 200)")?;
        bail!("Tab goes to {focused}");
    }
    let mut next = first.clone();
    for arrow in ["ArrowRight", "ArrowLeft"] {
        if next == first {
            browser.press(arrow)?;
            next = browser.evaluate(focused)?;
        }
    }
    ensure!(next.is_string() && next != first, "{first}, then {next}");
    browser.press("Enter")?;
    browser.until("document.activeElement.id === \"details-title\"")?;
    ensure!(text(browser, "#details-title")? == next.as_str().unwrap_or_default());
    browser.press("Escape")?;
    browser.until("document.querySelector(\"#details\").hidden")?;
    ensure!(browser.evaluate(focused)? == next, "focus is elsewhere");
    Ok(())
}

/// The same as a table, which sorts, and is filtered.
fn as_table(browser: &mut Browser) -> Result<()> {
    browser.click("#show-table")?;
    browser.until(&format!(
        "document.querySelectorAll(\"#rows tr\").length > {}",
        TRAFFIC.len()
    ))?;
    browser.click("#column-refused button")?;
    let sorted = browser
        .evaluate("document.querySelector(\"#column-refused\").getAttribute(\"aria-sort\")")?;
    ensure!(sorted == "descending", "{sorted}");
    let first = text(browser, "#rows tr")?;
    ensure!(
        first.contains(REFUSED.0)
            && first.contains("refused by policy")
            && first.contains("ledger-for-accounts"),
        "{first}"
    );
    browser.screenshot(&output("live-map-table.png"))?;
    browser.evaluate(
        "(() => { const it = document.querySelector(\"#name\"); it.value = \"crm\"; \
         it.dispatchEvent(new Event(\"input\", { bubbles: true })); })()",
    )?;
    browser.until(
        "[...document.querySelectorAll(\"#rows tr\")].every((it) => it.textContent.includes(\"crm\"))",
    )?;
    browser.click("#show-map")?;
    browser.until("document.querySelectorAll(\"#cells .cell\").length < 10")?;
    browser.evaluate("document.querySelector(\"#name\").value = \"\"")?;
    Ok(())
}

/// Nothing is asked of anybody else, and the page could not; and until here it had nothing to complain of.
fn closed_to_others(browser: &mut Browser) -> Result<()> {
    let complaints = browser.complaints();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    let names =
        browser.evaluate("performance.getEntriesByType(\"resource\").map((it) => it.name)")?;
    let names = names.as_array().context("a list")?;
    let own = |it: &Value| {
        it.as_str()
            .is_some_and(|it| it.starts_with("http://127.0.0.1:15080/"))
    };
    ensure!(names.iter().all(own), "{names:?}");
    let elsewhere = "fetch(\"http://127.0.0.2:15080/\").then(() => \"fetched\", () => \"refused\")";
    ensure!(browser.evaluate(elsewhere)? == "refused");
    let told = browser.complaints().join("\n");
    ensure!(told.contains("Content Security Policy"), "{told}");
    Ok(())
}

/// What it told stays, and is said to be old.
fn an_agent_that_is_gone(lab: &Lab, browser: &mut Browser) -> Result<()> {
    lab.node("n2").agent().stop()?;
    browser.until("document.querySelector(\"#problems\").textContent.includes(\"last answer\")")?;
    let told = text(browser, "#problems")?;
    ensure!(told.contains("n2"), "{told}");
    browser.until("document.querySelectorAll(\"#cells .cell\").length >= 50")?;
    browser.until("document.querySelectorAll(\"#cells .stale\").length > 10")?;
    browser.screenshot(&output("live-map-stale.png"))
}

fn text(browser: &mut Browser, selector: &str) -> Result<String> {
    let told = browser.evaluate(&format!("document.querySelector(\"{selector}\").innerText"))?;
    Ok(told.as_str().unwrap_or_default().to_owned())
}

/// `mesh-agent map` of a node over some agents, once it listens.
fn serve(lab: &Lab, agents: &[String]) -> Result<Process> {
    let (node, directory) = (lab.node("n1"), lab.directory());
    let mut command = node.program(&["map", "--agent", &agents.join(",")]);
    let (log, records) = (directory.join("map.log"), directory.join("pids"));
    let process = Process::spawn(node.netns(), &mut command, &log, &records)?;
    let reach = || TcpStream::connect((Ipv4Addr::LOCALHOST, 15080)).is_ok();
    eventually("the map is served", SOON, || Ok(node.netns().run(reach)))?;
    Ok(process)
}

/// Where pictures are kept.
fn output(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let target = target.expect("a directory in the target directory");
    target.join("test-output").join(name)
}

/// A namespace's name that no API server would take.
const HOSTILE: &str = "<script>document.title='owned'</script>";
const WORKLOADS: usize = 500;
const EDGES: usize = 2_000;
/// How long the page may take to follow an answer, in milliseconds, when nobody else has the machine.
const FLUENT: f64 = 100.0;

#[test]
fn five_hundred_workloads_stay_fluent() -> Result<()> {
    let lab = Lab::without_agents("live_map_large", 1, &[])?;
    let node = lab.node("n1");
    let listener = node.netns().run(|| TcpListener::bind("127.0.0.1:0"))?;
    let agent = format!("http://{}", listener.local_addr()?);
    listener.set_nonblocking(true)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| pretend(&listener, &stop));
        let seen = large(&lab, agent);
        stop.store(true, Ordering::Relaxed);
        seen
    })
}

fn large(lab: &Lab, agent: String) -> Result<()> {
    let node = lab.node("n1");
    let _map = serve(lab, &[agent])?;
    let mut browser = Browser::start(node.netns(), &lab.directory().join("chromium"), WINDOW)?;
    browser.open(MAP)?;
    browser.until(&format!(
        "document.querySelectorAll(\"#cells .cell\").length === {WORKLOADS}"
    ))?;
    browser.until("document.querySelectorAll(\".edge.active\").length > 500")?;
    let headings =
        "[...document.querySelectorAll(\"#titles text\")].map((it) => it.textContent).join()";
    let headings = browser.evaluate(headings)?;
    ensure!(
        headings.as_str().unwrap_or_default().contains("<script>"),
        "{headings}"
    );
    ensure!(
        text(&mut browser, "title")? == "Mesh map",
        "a name has become markup"
    );
    let mut times = Vec::new();
    for _ in 0..6 {
        sleep(Duration::from_millis(1100));
        let time = browser.evaluate("Number(document.documentElement.dataset.renderMs)")?;
        times.push(time.as_f64().context("a time")?);
    }
    // Frames while it is updated once a second: how long the longest took.
    let frames = "new Promise((done) => { const all = []; const begin = performance.now(); let last = begin; \
        const frame = (now) => { all.push(now - last); last = now; \
        if (now - begin < 3000) requestAnimationFrame(frame); else done([all.length, Math.max(...all)]); }; \
        requestAnimationFrame(frame); })";
    let frames = browser.evaluate(frames)?;
    println!(
        "{WORKLOADS} workloads, {EDGES} edges: updates of {times:?} ms; frames in 3 s, longest in ms: {frames}"
    );
    browser.screenshot(&output("live-map-500.png"))?;
    times.sort_by(f64::total_cmp);
    let limit = FLUENT * f64::from(mesh_tests::wait::patience());
    ensure!(times[0] < limit, "updates take {times:?} ms");
    browser.click("#show-table")?;
    browser.until(&format!(
        "document.querySelectorAll(\"#rows tr\").length === {EDGES}"
    ))?;
    ensure!(
        browser.complaints().is_empty(),
        "{:#?}",
        browser.complaints()
    );
    Ok(())
}

/// An agent that is told of a large cluster.
fn pretend(listener: &TcpListener, stop: &AtomicBool) {
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            sleep(Duration::from_millis(20));
            continue;
        };
        // What goes wrong shows on the page.
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_read_timeout(Some(SOON));
        let _ = stream.read(&mut [0; 4096]);
        let body = cluster(began.elapsed()).to_string();
        let length = body.len();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(body.as_bytes());
    }
}

fn cluster(since: Duration) -> Value {
    let namespace = |it: usize| match it % 20 {
        0 => HOSTILE.to_owned(),
        number => format!("team-{number}"),
    };
    let id = |it: usize| format!("{}/app-{it}", namespace(it));
    let nodes = (0..WORKLOADS).map(|it| {
        json!({
            "id": id(it), "namespace": namespace(it), "name": format!("app-{it}"), "workload": format!("app-{it}"),
            "node": "n1", "identity": null, "enrolled": it % 9 > 0, "local": true, "strict": it % 5 == 0,
            "addresses": [], "policies": [],
        })
    });
    let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let edges = (0..EDGES).map(|it| {
        let (from, step) = (it % WORKLOADS, 1 + it / WORKLOADS * 37);
        let carriage = ["tunnel", "same_node", "plain"][it % 3];
        json!({
            "source": id(from), "destination": id((from + step) % WORKLOADS), "service": null,
            "carriage": carriage, "reporter": "source", "at_ms": milliseconds,
            "opened": 1, "open": 1, "failed": 0, "refused": 0,
            "sent": milliseconds * (it as u64 % 700), "received": milliseconds, "round_trip_us": 300,
            "last_refusal": null,
        })
    });
    json!({
        "agents": [{ "name": "n1", "age_ms": 0, "error": null }],
        "nodes": nodes.collect::<Value>(), "edges": edges.collect::<Value>(), "left_out": 0,
    })
}
