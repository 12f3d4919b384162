//! An API server of the tests' own: lists in pages, watches with bookmarks, forgets, breaks off, goes away and comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::resource::Resource;

/// What watches of a kind are told.
#[derive(Clone, Debug)]
struct Entry {
    version: u64,
    path: String,
    line: String,
}

/// How the server is to behave.
#[derive(Debug, Default)]
pub(super) struct World {
    /// By path of its kind, then by namespace and name.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    history: Vec<Entry>,
    version: u64,
    /// Versions up to this one are too old to watch from.
    pub(super) forgotten: u64,
    /// A version that is too old is told by an event, not by the status of the answer.
    pub(super) forgets_by_event: bool,
    /// Kinds that are not served.
    pub(super) absent: BTreeSet<Resource>,
    /// Kinds that the client may not see.
    pub(super) forbidden: BTreeSet<Resource>,
    /// Kinds that are served in their oldest version only.
    pub(super) older: BTreeSet<Resource>,
    /// The token that everybody has to show.
    pub(super) token: Option<&'static str>,
    /// Patches are refused while it is above 0, because of somebody else's change.
    pub(super) conflicts: usize,
    /// Nobody is answered.
    pub(super) is_away: bool,
    /// Objects a page, whatever the client asks for.
    pub(super) page: Option<usize>,
    /// Further pages are refused while it is above 0.
    pub(super) expired_pages: usize,
    /// The next line of a watch breaks off in its middle.
    pub(super) breaks_line: bool,
    /// Changes with every cut: watches of an earlier one end.
    cut: u64,
    /// Lists, watches and patches that were asked for.
    pub(super) requests: Vec<String>,
}

/// The server; ends when dropped.
pub(super) struct Server {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<()>,
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let world = Arc::new(Mutex::new(World {
            version: 10,
            ..World::default()
        }));
        let (changed, changes) = watch::channel(());
        let mut task = JoinSet::new();
        task.spawn(accept(listener, world.clone(), changes));
        Self {
            world,
            changed,
            address,
            _task: task,
        }
    }

    /// Writes a kubeconfig that leads here.
    pub(super) fn kubeconfig(&self, directory: &std::path::Path) -> PathBuf {
        let path = directory.join("kubeconfig");
        let text = format!(
            "{{clusters: [{{name: a, cluster: {{server: 'http://{}'}}}}], users: [{{name: a, user: {{tokenFile: token}}}}], \
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}], current-context: a}}",
            self.address
        );
        std::fs::write(&path, text).unwrap();
        let token = directory.join("token");
        if !token.exists() {
            std::fs::write(token, "none").unwrap();
        }
        path
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Adds or changes an object, in its first version.
    pub(super) fn put(&self, resource: Resource, mut object: Value) {
        let mut world = self.world();
        world.version += 1;
        object["metadata"]["resourceVersion"] = world.version.to_string().into();
        // What a real object is full of.
        object["metadata"]["managedFields"] = json!([{"manager": "a", "fieldsV1": {"f:spec": {}}}]);
        object["apiVersion"] = resource.versions()[0].into();
        object["kind"] = resource.kind().into();
        let of_kind = world.objects.entry(path(resource)).or_default();
        let old = of_kind.insert(id(&object), object.clone());
        world.happened(resource, old.map_or("ADDED", |_| "MODIFIED"), &object);
        drop(world);
        self.changed.send_replace(());
    }

    pub(super) fn remove(&self, resource: Resource, id: &str) {
        let mut world = self.world();
        world.version += 1;
        let version = world.version.to_string();
        let of_kind = world.objects.get_mut(&path(resource)).unwrap();
        let mut object = of_kind.remove(id).unwrap();
        object["metadata"]["resourceVersion"] = version.into();
        world.happened(resource, "DELETED", &object);
        drop(world);
        self.changed.send_replace(());
    }

    /// Tells watches of a kind the current version.
    pub(super) fn bookmark(&self, resource: Resource) {
        let mut world = self.world();
        world.version += 1;
        let object = json!({"metadata": {"resourceVersion": world.version.to_string()}});
        world.happened(resource, "BOOKMARK", &object);
        drop(world);
        self.changed.send_replace(());
    }

    /// Sends watches of a kind a line as it is.
    pub(super) fn line(&self, resource: Resource, line: &str) {
        let mut world = self.world();
        world.version += 1;
        let (version, path) = (world.version, path(resource));
        let line = line.to_owned();
        world.history.push(Entry {
            version,
            path,
            line,
        });
        drop(world);
        self.changed.send_replace(());
    }

    /// Forgets everything before now.
    pub(super) fn forget(&self) {
        let mut world = self.world();
        world.version += 1;
        world.forgotten = world.version - 1;
        world.history.clear();
    }

    /// Ends every watch.
    pub(super) fn cut(&self) {
        self.world().cut += 1;
        self.changed.send_replace(());
    }

    /// Goes away or comes back.
    pub(super) fn away(&self, is_away: bool) {
        self.world().is_away = is_away;
        self.cut();
    }

    /// The current object.
    pub(super) fn object(&self, resource: Resource, id: &str) -> Value {
        self.world().objects[&path(resource)][id].clone()
    }
}

impl World {
    fn happened(&mut self, resource: Resource, kind: &str, object: &Value) {
        let line = json!({"type": kind, "object": object}).to_string();
        let (version, path) = (self.version, path(resource));
        self.history.push(Entry {
            version,
            path,
            line,
        });
    }

    /// Number of requests whose line has both texts.
    pub(super) fn asked(&self, with: &str, and: &str) -> usize {
        let has = |it: &&String| it.contains(with) && it.contains(and);
        self.requests.iter().filter(has).count()
    }
}

fn path(resource: Resource) -> String {
    resource.path(resource.versions()[0])
}

fn id(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    match text("namespace") {
        "" => text("name").to_owned(),
        namespace => format!("{namespace}/{}", text("name")),
    }
}

async fn accept(listener: TcpListener, world: Arc<Mutex<World>>, changes: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(serve(stream, world.clone(), changes.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Serves one request; every answer ends its connection.
async fn serve(stream: TcpStream, world: Arc<Mutex<World>>, changes: watch::Receiver<()>) {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) <= 2 {
            break;
        }
        if let Some(it) = line.to_lowercase().strip_prefix("content-length:") {
            length = it.trim().parse().unwrap();
        }
        head.push(line);
    }
    if head.is_empty() || world.lock().unwrap().is_away {
        return;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let mut words = head[0].split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: BTreeMap<_, _> = query
        .split('&')
        .filter_map(|it| it.split_once('='))
        .collect();
    let answer = {
        let mut world = world.lock().unwrap();
        world.requests.push(format!("{method} {target}"));
        let bearer = |token| format!("Bearer {token}\r\n");
        let shown = |token| head.iter().any(|it| it.ends_with(&bearer(token)));
        if world.token.is_none_or(shown) {
            world.answer(method, path, &query, &body)
        } else {
            status(401)
        }
    };
    let stream = stream.into_inner();
    match answer {
        Answer::Whole(code, value) => whole(stream, code, &value.to_string()).await,
        Answer::Watch(path, from) => {
            let _ = watch_from(stream, &path, from, &world, changes).await;
        }
    }
}

async fn whole(mut stream: TcpStream, code: u16, body: &str) {
    let head = format!(
        "HTTP/1.1 {code} x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len(),
    );
    let _ = stream.write_all(head.as_bytes()).await;
}

enum Answer {
    Whole(u16, Value),
    Watch(String, u64),
}

fn status(code: u16) -> Answer {
    let value = json!({"kind": "Status", "status": "Failure", "code": code, "reason": "x", "message": "as told"});
    Answer::Whole(code, value)
}

impl World {
    fn answer(
        &mut self,
        method: &str,
        path_: &str,
        query: &BTreeMap<&str, &str>,
        body: &[u8],
    ) -> Answer {
        let is_of = |it: &Resource| path_.contains(&format!("/{}", it.plural()));
        let resource = Resource::ALL.into_iter().find(is_of).unwrap();
        let mut served = resource.versions().iter();
        let served = if self.older.contains(&resource) {
            served.next_back()
        } else {
            served.next()
        };
        let is_served = path_.contains(&format!("/{}/", served.unwrap()));
        if !is_served || self.absent.contains(&resource) {
            return status(404);
        }
        if self.forbidden.contains(&resource) {
            return status(403);
        }
        if let Some(name) = path_.strip_prefix(&format!("{}/", path(resource))) {
            return self.single(method, resource, name, body);
        }
        if query.contains_key("watch") {
            let from: u64 = query["resourceVersion"].parse().unwrap();
            if from < self.forgotten && !self.forgets_by_event {
                return status(410);
            }
            return Answer::Watch(path(resource), from);
        }
        self.page(&path(resource), query)
    }

    fn page(&mut self, path: &str, query: &BTreeMap<&str, &str>) -> Answer {
        let from: usize = query.get("continue").map_or(0, |it| it.parse().unwrap());
        if from > 0 && self.expired_pages > 0 {
            self.expired_pages -= 1;
            return status(410);
        }
        let limit = query.get("limit").and_then(|it| it.parse().ok());
        let limit = limit.map_or(usize::MAX, |it: usize| it.min(self.page.unwrap_or(it)));
        let all = self.objects.get(path).map_or(0, BTreeMap::len);
        let objects = self.objects.get(path).into_iter().flatten();
        let page = objects.skip(from).take(limit).map(|(_, it)| it.clone());
        let items: Vec<_> = page
            .map(|mut it| {
                // As in lists of a real server.
                it.as_object_mut()
                    .unwrap()
                    .retain(|name, _| name != "kind" && name != "apiVersion");
                it
            })
            .collect();
        let end = from + items.len();
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if end < all {
            metadata["continue"] = end.to_string().into();
        }
        Answer::Whole(
            200,
            json!({"kind": "List", "metadata": metadata, "items": items}),
        )
    }

    /// `GET` and a merge patch with its precondition.
    fn single(&mut self, method: &str, resource: Resource, name: &str, body: &[u8]) -> Answer {
        let of_kind = self.objects.entry(path(resource)).or_default();
        let Some(object) = of_kind.get_mut(name) else {
            return status(404);
        };
        if method == "PATCH" {
            if self.conflicts > 0 {
                self.conflicts -= 1;
                return status(409);
            }
            let patch: Value = serde_json::from_slice(body).unwrap();
            if patch["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                return status(409);
            }
            object["spec"]["taints"] = patch["spec"]["taints"].clone();
        }
        Answer::Whole(200, object.clone())
    }
}

async fn watch_from(
    mut stream: TcpStream,
    path: &str,
    mut from: u64,
    world: &Mutex<World>,
    mut changes: watch::Receiver<()>,
) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let cut = world.lock().unwrap().cut;
    loop {
        changes.borrow_and_update();
        let mut text = String::new();
        let mut breaks = false;
        {
            let mut world = world.lock().unwrap();
            if world.cut != cut {
                return Ok(());
            }
            if from < world.forgotten {
                let gone =
                    r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}"#;
                writeln!(text, "{gone}").unwrap();
            }
            let news = world
                .history
                .iter()
                .filter(|it| it.version > from && it.path == path);
            for it in news {
                writeln!(text, "{}", it.line).unwrap();
            }
            if !text.is_empty() && std::mem::take(&mut world.breaks_line) {
                text.truncate(text.len() / 2);
                breaks = true;
            }
            from = from.max(world.version);
        }
        if !text.is_empty() {
            let chunk = format!("{:x}\r\n{text}\r\n", text.len());
            // A chunk that breaks off, not only a line.
            let end = if breaks {
                chunk.len() - 10
            } else {
                chunk.len()
            };
            stream.write_all(&chunk.as_bytes()[..end]).await?;
            if breaks {
                return Ok(());
            }
        }
        if changes.changed().await.is_err() {
            return Ok(());
        }
    }
}
