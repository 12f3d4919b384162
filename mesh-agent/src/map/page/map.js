// The live map. Reads map.json every second, and changes what has changed. All text of the cluster is hostile: it is set
// as text, never as markup.

const PERIOD = 1000;
/** How long a refusal stands out, in milliseconds. */
const RECENT = 60_000;
/** How long a rate stands without another reading, in milliseconds. */
const SILENT = 5_000;
const OUTSIDE = "\u0000outside";
const CELL = { width: 152, height: 30, gapX: 62, gapY: 30 };
/** What a mark takes with the rate that is written at it, around its middle. */
const MARK = { left: 10, right: 62, half: 9 };
const BOX = { pad: 20, head: 34, gap: 28 };
/** From so many lines on, those that are idle step back further. */
const MANY = 250;
/** Up to so many lines, each has its rate written at it. */
const FEW = 80;
const KINDS = {
  tunnel: "mutual TLS tunnel",
  same_node: "same node, in the kernel",
  plain: "plain",
  refused: "refused by policy",
  failed: "failed",
  unknown: "not decided",
};

const $ = (id) => document.getElementById(id);
const svg = (name, attributes = {}, ...children) => {
  const it = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) it.setAttribute(key, value);
  it.append(...children);
  return it;
};
const html = (name, attributes = {}, ...children) => {
  const it = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") it.addEventListener("click", value);
    else it.setAttribute(key, value);
  }
  it.append(...children.filter((child) => child !== null && child !== undefined));
  return it;
};
const setText = (it, text) => { if (it.textContent !== text) it.textContent = text; };
const setAttribute = (it, key, value) => { if (it.getAttribute(key) !== value) it.setAttribute(key, value); };
const icon = (kind) => svg("svg", { class: `icon ${kind}`, viewBox: "-6 -6 12 12", "aria-hidden": "true" },
  svg("use", { href: `#i-${kind}`, x: -8, y: -8, width: 16, height: 16 }));

const state = {
  /** Workloads by id. */
  nodes: new Map(),
  /** Edges as told, by key, with rates. */
  edges: new Map(),
  /** What is drawn: all edges from one workload to another, by both ids. */
  pairs: new Map(),
  agents: [],
  leftOut: 0,
  answered: null,
  selected: null,
  cursor: null,
  sort: { column: "rate", down: true },
  zoom: null,
  drawn: "",
};

// ---- what was told

/** Takes over an answer. Rates are from two readings of one agent, smoothed. */
function take(graph) {
  state.nodes = new Map(graph.nodes.map((it) => [it.id, it]));
  const before = state.edges;
  state.edges = new Map();
  for (const edge of graph.edges) {
    const key = JSON.stringify([edge.source, edge.destination, edge.service, edge.carriage, edge.reporter]);
    const known = before.get(key);
    edge.key = key;
    edge.up = known?.up ?? 0;
    edge.down = known?.down ?? 0;
    edge.refusedAt = edge.refused ? Date.parse(edge.last_refusal?.time) || 0 : 0;
    if (known && edge.refused > known.refused) edge.refusedAt = Math.max(edge.refusedAt, Date.now());
    else if (known) edge.refusedAt = known.refusedAt;
    const seconds = known ? (edge.at_ms - known.at_ms) / 1000 : 0;
    if (seconds > 0) {
      const rate = (now, then, old) => Math.max(0, now - then) / seconds * 0.6 + old * 0.4;
      edge.up = rate(edge.sent, known.sent, known.up);
      edge.down = rate(edge.received, known.received, known.down);
    }
    // An agent that does not answer tells of no rate.
    edge.heard = seconds > 0 || !known ? Date.now() : known.heard;
    if (Date.now() - edge.heard > SILENT) edge.up = edge.down = 0;
    if (edge.up < 1) edge.up = 0;
    if (edge.down < 1) edge.down = 0;
    state.edges.set(key, edge);
  }
  state.agents = graph.agents;
  state.leftOut = graph.left_out;
  state.answered = Date.now();
  group();
}

/** Puts the edges of each two workloads together. */
function group() {
  const pairs = new Map();
  for (const edge of state.edges.values()) {
    const ends = [edge.source ?? OUTSIDE, edge.destination ?? OUTSIDE];
    if (ends.some((it) => it !== OUTSIDE && !state.nodes.has(it))) continue;
    const key = JSON.stringify(ends);
    let pair = pairs.get(key);
    if (!pair) {
      pair = { key, source: ends[0], destination: ends[1], edges: [], rate: 0, open: 0, refused: 0, failed: 0, refusedAt: 0 };
      pairs.set(key, pair);
    }
    pair.edges.push(edge);
    pair.rate += edge.up + edge.down;
    pair.open += edge.open;
    pair.refused += edge.refused;
    pair.failed += edge.failed;
    pair.refusedAt = Math.max(pair.refusedAt, edge.refusedAt);
  }
  for (const pair of pairs.values()) {
    // The least protected way that carried anything is the one to show.
    const carried = (kind) => pair.edges.some((it) => it.carriage === kind && it.opened > 0);
    pair.kind = ["plain", "same_node", "tunnel", "unknown"].find(carried)
      ?? (pair.refused ? "refused" : pair.failed ? "failed" : "unknown");
    pair.recent = Date.now() - pair.refusedAt < RECENT;
    pair.mark = pair.recent && pair.refused ? "refused" : pair.kind;
  }
  state.pairs = pairs;
}

/** Namespace of a workload. */
const home = (it) => it.namespace ?? "(no namespace)";

/** Which workloads are shown, and which of them only because they speak with one that is asked for. */
function shown() {
  const namespace = $("namespace").value;
  const name = $("name").value.trim().toLowerCase();
  const wanted = (it) => (!namespace || home(it) === namespace) && (!name || it.id.toLowerCase().includes(name));
  const ids = new Map();
  for (const it of state.nodes.values()) if (wanted(it)) ids.set(it.id, "asked");
  const asked = new Set(ids.keys());
  for (const pair of state.pairs.values()) {
    const [a, b] = [asked.has(pair.source), asked.has(pair.destination)];
    if (a && !b) ids.set(pair.destination, pair.destination === OUTSIDE ? "asked" : "peer");
    if (b && !a) ids.set(pair.source, pair.source === OUTSIDE ? "asked" : "peer");
  }
  return ids;
}

// ---- layout

/** Places of all that is shown: the same for the same workloads, whatever the traffic. */
function layout(ids) {
  const spaces = new Map();
  for (const id of [...ids.keys()].sort()) {
    const name = id === OUTSIDE ? OUTSIDE : home(state.nodes.get(id));
    if (!spaces.has(name)) spaces.set(name, []);
    spaces.get(name).push(id);
  }
  const sorted = [...spaces].sort(([a], [b]) => (a === OUTSIDE) - (b === OUTSIDE) || (a < b ? -1 : 1));
  // As wide as it is without details, so that nothing moves when somebody looks at them.
  const view = document.querySelector("main");
  // Of several ways to arrange them, the one that shows them largest.
  let best = null;
  for (const shape of [0.3, 0.5, 0.8, 1.2]) {
    for (const spread of [0.8, 1, 1.25, 1.6]) {
      const arranged = arrange(sorted, shape, spread, view.clientWidth / Math.max(1, view.clientHeight));
      arranged.fit = Math.min(view.clientWidth / arranged.width, view.clientHeight / arranged.height);
      if (!best || arranged.fit > best.fit * 1.001) best = arranged;
    }
  }
  return best;
}

/** Boxes of a shape, packed into a width that is by so much larger or smaller than their area asks for. */
function arrange(spaces, shape, spread, aspect) {
  const [stepX, stepY] = [CELL.width + CELL.gapX, CELL.height + CELL.gapY];
  const boxes = spaces.map(([name, all]) => {
    const columns = Math.max(1, Math.round(Math.sqrt(all.length * shape)));
    const rows = Math.ceil(all.length / columns);
    return {
      name, all, columns,
      width: columns * stepX - CELL.gapX + 2 * BOX.pad,
      height: rows * stepY - CELL.gapY + BOX.pad + BOX.head,
    };
  });
  const area = boxes.reduce((sum, it) => sum + (it.width + BOX.gap) * (it.height + BOX.gap), 0);
  const across = Math.max(0, ...boxes.map((it) => it.width), Math.sqrt(area * aspect) * spread);
  const cells = new Map();
  let [width, height] = [1, 1];
  for (const box of pack(boxes, across)) {
    box.all.forEach((id, index) => cells.set(id, {
      x: box.x + BOX.pad + (index % box.columns) * stepX,
      y: box.y + BOX.head + Math.floor(index / box.columns) * stepY,
    }));
    width = Math.max(width, box.x + box.width);
    height = Math.max(height, box.y + box.height);
  }
  return { boxes, cells, width, height };
}

/** Gives each box the highest place that is free, from the left. */
function pack(boxes, across) {
  const placed = [];
  for (const box of boxes) {
    const hits = (x, y) => placed.find((it) => x < it.x + it.width + BOX.gap && it.x < x + box.width + BOX.gap
      && y < it.y + it.height + BOX.gap && it.y < y + box.height + BOX.gap);
    const lefts = [0, ...placed.map((it) => it.x + it.width + BOX.gap)].filter((x) => x + box.width <= across + 1);
    let best = null;
    for (const x of new Set(lefts.sort((a, b) => a - b))) {
      let y = 0;
      for (let it = hits(x, y); it; it = hits(x, y)) y = it.y + it.height + BOX.gap;
      if (!best || y < best.y) best = { x, y };
    }
    placed.push(Object.assign(box, best));
  }
  return placed;
}

const inside = (point, cell, by) => point.x > cell.x - by && point.x < cell.x + CELL.width + by
  && point.y > cell.y - by && point.y < cell.y + CELL.height + by;
const collides = (point, cell) => point.x + MARK.right > cell.x && point.x - MARK.left < cell.x + CELL.width
  && point.y + MARK.half > cell.y && point.y - MARK.half < cell.y + CELL.height;
const near = (a, b) => Math.abs(a.x - b.x) < MARK.left + MARK.right && Math.abs(a.y - b.y) < 2 * MARK.half;

/** The curve from one cell to another: its path, and where its mark has a place that no cell takes, nor another mark. */
function curve(a, b, cells, marks) {
  const middle = (it) => ({ x: it.x + CELL.width / 2, y: it.y + CELL.height / 2 });
  const [from, to] = [middle(a), middle(b)];
  if (a === b) {
    const [x, y] = [a.x + CELL.width, from.y];
    return { path: `M${x} ${y - 8}c26 -14 26 30 0 16`, mark: { x: x + 20, y } };
  }
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy);
  // In one column or row there are cells between: more of a bow goes around them.
  const straight = Math.abs(dx) < 1 || Math.abs(dy) < 1;
  const bow = straight && length > 1.5 * CELL.width ? 48 : Math.min(70, 14 + length * 0.1);
  const control = { x: (from.x + to.x) / 2 - dy / length * (Math.abs(dx) < 1 ? Math.max(bow, 118) : bow), y: (from.y + to.y) / 2 + dx / length * bow };
  const at = (t) => ({
    x: (1 - t) ** 2 * from.x + 2 * t * (1 - t) * control.x + t * t * to.x,
    y: (1 - t) ** 2 * from.y + 2 * t * (1 - t) * control.y + t * t * to.y,
  });
  let [start, end] = [0, 1];
  while (start < 0.5 && inside(at(start), a, 1)) start += 0.02;
  while (end > 0.5 && inside(at(end), b, 3)) end -= 0.01;
  // The part of the curve between them is a curve with a control of its own.
  const blend = (p, q, t) => ({ x: p.x + (q.x - p.x) * t, y: p.y + (q.y - p.y) * t });
  const own = blend(blend(from, control, start), blend(control, to, start), end);
  const [p, q] = [at(start), at(end)];
  const places = [0.5, 0.46, 0.54, 0.42, 0.58, 0.37, 0.63, 0.32, 0.68, 0.27, 0.73, 0.22, 0.78, 0.17, 0.83, 0.12, 0.88].map((it) => at(start + (end - start) * it));
  const roomy = marks.length < FEW
    && places.find((point) => !cells.some((cell) => collides(point, cell)) && !marks.some((mark) => near(point, mark)));
  const free = roomy || places.find((point) => !cells.some((cell) => inside(point, cell, 8)));
  const round = (it) => Math.round(it * 10) / 10;
  return {
    path: `M${round(p.x)} ${round(p.y)}Q${round(own.x)} ${round(own.y)} ${round(q.x)} ${round(q.y)}`,
    mark: free ?? places[0],
    roomy: Boolean(roomy),
  };
}

// ---- the map

const drawn = { cells: new Map(), lines: new Map(), places: new Map(), around: [], ways: new Map(), size: { width: 1, height: 1 } };

function draw() {
  const ids = shown();
  const view = document.querySelector("main");
  const signature = JSON.stringify([[...ids].sort(), Math.round(view.clientWidth / 200), Math.round(view.clientHeight / 200)]);
  if (signature !== state.drawn) {
    state.drawn = signature;
    place(ids);
  }
  for (const [id, cell] of drawn.cells) paintCell(id, cell);
  for (const pair of state.pairs.values()) {
    if (!drawn.places.has(pair.source) || !drawn.places.has(pair.destination)) continue;
    if (ids.get(pair.source) === "peer" && ids.get(pair.destination) === "peer") continue;
    paintPair(pair);
  }
  for (const [key, line] of drawn.lines) if (!state.pairs.has(key)) removeLine(key, line);
  choose();
}

/** Draws boxes and cells anew; lines follow. */
function place(ids) {
  const { boxes, cells, width, height } = layout(ids);
  const focused = document.activeElement?.dataset?.id;
  drawn.places = cells;
  drawn.around = [...cells.values()];
  // The last mark's rate has a place, too.
  drawn.size = { width: width + 24, height };
  for (const [key, line] of drawn.lines) removeLine(key, line);
  $("boxes").replaceChildren(...boxes.map((box) =>
    svg("rect", { x: box.x, y: box.y, width: box.width, height: box.height, rx: 10 })));
  $("titles").replaceChildren(...boxes.map((box) => {
    const name = box.name === OUTSIDE ? "Outside" : box.name;
    const text = svg("text", { x: box.x + BOX.pad, y: box.y + 20 }, short(name, box.width - 2 * BOX.pad - 30));
    if (box.name !== OUTSIDE) text.append(svg("tspan", { dx: 6 }, String(box.all.length)));
    return text;
  }));
  drawn.cells.clear();
  for (const [id, at] of cells) drawn.cells.set(id, makeCell(id, at, ids.get(id)));
  $("cells").replaceChildren(...drawn.cells.values());
  if (!drawn.cells.has(state.cursor)) state.cursor = drawn.cells.keys().next().value ?? null;
  resize();
  if (focused && drawn.cells.has(focused)) drawn.cells.get(focused).focus();
}

function makeCell(id, at, how) {
  const name = id === OUTSIDE ? "no workload" : state.nodes.get(id).name;
  const title = id === OUTSIDE ? "Whatever is no workload: nodes, other machines" : id;
  const cell = svg("g", { class: how, role: "button", transform: `translate(${at.x} ${at.y})` },
    svg("rect", { width: CELL.width, height: CELL.height, rx: 6 }),
    svg("circle", { class: "dot", cx: 14, cy: CELL.height / 2, r: 4.5 }),
    svg("circle", { class: "hub", cx: 14, cy: CELL.height / 2, r: 1.7 }),
    svg("text", { x: 26, y: CELL.height / 2 + 4 }, short(name, CELL.width - 34)),
    svg("title", {}, title));
  cell.dataset.id = id;
  cell.dataset.how = how;
  return cell;
}

const pen = document.createElement("canvas").getContext("2d");
/** As much of a name as is no wider than so many units; its end, which tells replicas apart, is kept. */
function short(name, most) {
  const fits = (text) => pen.measureText(text).width <= most;
  if (fits(name)) return name;
  for (let keep = name.length - 1; keep > 10; keep -= 1) {
    const text = `${name.slice(0, keep - 6)}…${name.slice(-6)}`;
    if (fits(text)) return text;
  }
  return `${name.slice(0, 5)}…${name.slice(-5)}`;
}

function paintCell(id, cell) {
  const node = state.nodes.get(id);
  const ways = drawn.ways.get(id);
  const stale = node && state.agents.some((it) => it.error && it.name === node.node);
  const classes = ["cell", cell.dataset.how, node?.enrolled && "enrolled", node?.strict && "strict", stale && "stale",
    ways?.recent && "refused", state.selected?.node === id && "selected", ways?.on && "on"];
  setAttribute(cell, "class", classes.filter(Boolean).join(" "));
  setAttribute(cell, "tabindex", id === state.cursor ? "0" : "-1");
  const told = node
    ? [node.id, node.enrolled ? "in the mesh" : "not in the mesh", node.strict && "takes only mutual TLS",
      ways && `${ways.count} connected`, ways?.recent && "refused lately", stale && "its agent does not answer"]
    : ["outside: whatever is no workload"];
  setAttribute(cell, "aria-label", told.filter(Boolean).join(", "));
  setAttribute(cell, "aria-pressed", String(state.selected?.node === id));
}

function paintPair(pair) {
  let line = drawn.lines.get(pair.key);
  if (!line) {
    const at = curve(drawn.places.get(pair.source), drawn.places.get(pair.destination), drawn.around, [...drawn.lines.values()].map((it) => it.at));
    line = {
      at: at.mark,
      path: svg("path", { d: at.path }),
      mark: svg("g", { transform: `translate(${Math.round(at.mark.x)} ${Math.round(at.mark.y)})` },
        svg("circle", { r: 8 }), svg("use", { x: -8, y: -8, width: 16, height: 16 }), svg("text", { x: 11, y: 3.5 }), svg("title")),
    };
    line.path.dataset.pair = line.mark.dataset.pair = pair.key;
    line.mark.dataset.roomy = at.roomy;
    $("lines").append(line.path);
    $("marks").append(line.mark);
    drawn.lines.set(pair.key, line);
  }
  const on = state.selected && (state.selected.pair === pair.key || [pair.source, pair.destination].includes(state.selected.node));
  const more = `${pair.rate > 0 ? " active" : ""}${pair.recent ? " recent" : ""}${on ? " on" : ""}`;
  setAttribute(line.path, "class", `edge ${pair.kind}${more}`);
  setAttribute(line.path, "marker-end", `url(#arrow-${pair.kind})`);
  setAttribute(line.path, "stroke-width", String(pair.rate > 0 ? Math.min(6.5, 1.25 + Math.round(4 * Math.log10(1 + pair.rate / 200)) / 4) : 1.25));
  setAttribute(line.mark, "class", `mark ${pair.mark}${more}`);
  setAttribute(line.mark.children[1], "href", `#i-${pair.mark}`);
  setText(line.mark.children[2], pair.rate > 0 ? rate(pair.rate) : "");
  setText(line.mark.lastChild, `${label(pair.source)} → ${label(pair.destination)}: ${KINDS[pair.mark]}, ${rate(pair.rate)}`);
}

function removeLine(key, line) {
  line.path.remove();
  line.mark.remove();
  drawn.lines.delete(key);
}

/** What concerns each workload, told once for all cells. */
function count() {
  const ways = new Map();
  for (const pair of state.pairs.values()) {
    const on = state.selected && (state.selected.pair === pair.key || [pair.source, pair.destination].includes(state.selected.node));
    for (const id of new Set([pair.source, pair.destination])) {
      const known = ways.get(id) ?? { count: 0, recent: false, on: false };
      known.count += 1;
      known.recent ||= pair.recent && pair.refused > 0;
      known.on ||= Boolean(on);
      ways.set(id, known);
    }
  }
  if (state.selected?.node) ways.set(state.selected.node, { count: 0, recent: false, ...ways.get(state.selected.node), on: true });
  drawn.ways = ways;
}

/** What the whole map is told by. */
function choose() {
  $("map").classList.toggle("chosen", Boolean(state.selected));
  $("map").classList.toggle("many", drawn.lines.size > MANY);
  $("map").classList.toggle("few", drawn.lines.size <= FEW);
}

/** The map as large as it is shown: fitted into its view without details, unless somebody has zoomed. */
function resize() {
  const view = document.querySelector("main");
  const { width, height } = drawn.size;
  const fit = Math.min((view.clientWidth - 26) / (width + 4), (view.clientHeight - 26) / (height + 4));
  const scale = state.zoom ?? Math.max(0.3, Math.min(1.25, fit));
  drawn.scale = scale;
  setAttribute($("map"), "viewBox", `-2 -2 ${width + 4} ${height + 4}`);
  setAttribute($("map"), "width", String(Math.floor((width + 4) * scale)));
  setAttribute($("map"), "height", String(Math.floor((height + 4) * scale)));
}

// ---- words

const label = (id) => (id ?? OUTSIDE) === OUTSIDE ? "outside" : id;
function bytes(count) {
  if (count < 1000) return `${Math.round(count)} B`;
  const units = ["kB", "MB", "GB", "TB", "PB"];
  let unit = -1;
  while (count >= 999.5 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}
const rate = (count) => count > 0 ? `${bytes(count)}/s` : "idle";
const latency = (us) => us === null || us === undefined ? "" : us < 1000 ? `${us} µs` : `${(us / 1000).toFixed(1)} ms`;
const number = (it) => it.toLocaleString("en");
const counted = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;
const ago = (ms) => ms < 1500 ? "just now" : ms < 90_000 ? `${Math.round(ms / 1000)} s ago` : `${Math.round(ms / 60_000)} min ago`;

// ---- details

function select(selected, focus) {
  state.selected = selected;
  $("details").hidden = !selected;
  if (selected?.node) state.cursor = selected.node;
  state.body = "";
  render();
  // Details may have taken its place.
  drawn.cells.get(selected?.node)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (focus && selected) $("details-title").focus();
}

function close() {
  if (!state.selected) return;
  const back = state.selected.node ?? JSON.parse(state.selected.pair)[0];
  select(null);
  if (!$("map-view").hidden) focusCell(back);
}

function details() {
  const { selected } = state;
  if (!selected) return;
  const parts = selected.node ? ofNode(selected.node) : ofPair(selected.pair);
  setText($("details-title"), parts.title);
  // Only what has changed is replaced, so that focus and what a screen reader has read stay.
  const body = $("details-body");
  parts.sections.forEach((section, index) => {
    const old = body.children[index];
    if (!old) body.append(section);
    else if (!old.isEqualNode(section)) {
      const key = old.contains(document.activeElement) ? document.activeElement.dataset.go : undefined;
      old.replaceWith(section);
      if (key) section.querySelector(`[data-go="${CSS.escape(key)}"]`)?.focus();
    }
  });
  while (body.children.length > parts.sections.length) body.lastChild.remove();
}

function ofNode(id) {
  const node = state.nodes.get(id);
  const pairs = [...state.pairs.values()];
  const by = (a, b) => b.rate - a.rate || b.refusedAt - a.refusedAt || (a.key < b.key ? -1 : 1);
  const [out, into] = [pairs.filter((it) => it.source === id).sort(by), pairs.filter((it) => it.destination === id).sort(by)];
  const sections = [];
  if (node) {
    sections.push(facts([
      ["Identity", node.identity ?? "none"],
      ["Namespace", node.namespace ?? "none"],
      node.workload !== node.name && ["Workload", node.workload],
      ["Node", node.node ?? "not known"],
      ["Addresses", node.addresses.join(", ") || "none"],
      ["In the mesh", node.enrolled ? "yes" : "no"],
      node.enrolled && ["Plaintext", node.strict ? "not taken (STRICT)" : "taken (PERMISSIVE)"],
    ]));
    sections.push(section("Policies in force", node.policies.map((it) => html("li", {}, it)), "None: everything is allowed."));
  } else if (id !== OUTSIDE) {
    sections.push(html("p", { class: "note" }, "This workload is gone."));
  } else {
    sections.push(html("p", { class: "note" }, "Whatever is no workload: nodes, other machines, addresses nobody has."));
  }
  sections.push(section("Connects to", out.map((it) => way(it, it.destination)), "Nothing yet."));
  sections.push(section("Connected from", into.map((it) => way(it, it.source)), "Nothing yet."));
  sections.push(refusals([...out, ...into]));
  return { title: node?.id ?? label(id), sections };
}

function ofPair(key) {
  const [source, destination] = JSON.parse(key);
  const pair = state.pairs.get(key);
  const sections = [html("p", {}, go(source, label(source)), " → ", go(destination, label(destination)))];
  for (const edge of pair?.edges ?? []) {
    const kind = kindOf(edge);
    sections.push(html("div", {}, html("h3", {}, icon(kind), " ", KINDS[kind]), facts([
      edge.service && ["Service", edge.service],
      ["Rate", `${rate(edge.up)} there, ${rate(edge.down)} back`],
      ["Bytes", `${bytes(edge.sent)} there, ${bytes(edge.received)} back`],
      ["Connections", `${number(edge.open)} open, ${number(edge.opened)} in all`],
      edge.round_trip_us !== null && ["Round trip", latency(edge.round_trip_us)],
      edge.failed > 0 && ["Failed", number(edge.failed)],
      edge.refused > 0 && ["Refused", number(edge.refused)],
    ])));
  }
  if (!pair) sections.push(html("p", { class: "note" }, "Nothing is between them any more."));
  sections.push(refusals(pair ? [pair] : []));
  return { title: `${label(source)} → ${label(destination)}`, sections };
}

/** Why it was refused, with the policy if that is not said already. */
function why(it) {
  const reason = it.reason ?? it.flag;
  return it.policy && !reason.includes(it.policy) ? `${reason} (${it.policy})` : reason;
}
const kindOf = (edge) => edge.opened > 0 ? edge.carriage : edge.refused > 0 ? "refused" : edge.failed > 0 ? "failed" : edge.carriage;
const go = (id, text) => html("button", { type: "button", class: "link", "data-go": id, onclick: () => select({ node: id }, true) }, text);

function facts(all) {
  const rows = all.filter(Boolean);
  return html("dl", {}, ...rows.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)]));
}

function section(title, items, nothing) {
  return html("section", {}, html("h3", {}, title), items.length ? html("ul", {}, ...items) : html("p", { class: "note" }, nothing));
}

function way(pair, other) {
  const sum = (field) => pair.edges.reduce((total, it) => total + it[field], 0);
  const trips = pair.edges.map((it) => it.round_trip_us).filter((it) => it !== null && it !== undefined);
  const numbers = [
    `${number(pair.open)} open`, `${bytes(sum("sent"))} there, ${bytes(sum("received"))} back`,
    trips.length && `round trip ${latency(Math.min(...trips))}`,
    pair.refused && `${number(pair.refused)} refused`, pair.failed && `${number(pair.failed)} failed`];
  return html("li", {},
    html("div", { class: "way" }, icon(pair.mark), go(other, label(other)), html("span", { class: "rate" }, rate(pair.rate))),
    html("p", { class: "note" }, `${KINDS[pair.kind]}; ${numbers.filter(Boolean).join("; ")}`));
}

function refusals(pairs) {
  const all = pairs.flatMap((it) => it.edges).filter((it) => it.last_refusal);
  all.sort((a, b) => (a.last_refusal.time < b.last_refusal.time ? 1 : -1));
  const items = all.slice(0, 20).map(({ last_refusal: it, ...edge }) => html("li", {},
    html("div", { class: "way" }, icon(it.verdict === "denied" ? "refused" : "failed"), `${label(edge.source)} → ${label(edge.destination)}`),
    html("p", { class: it.verdict === "denied" ? "bad" : "" }, why(it)),
    html("p", { class: "note" }, [`${it.time.slice(0, 10)} ${it.time.slice(11, 19)} UTC`, `port ${it.destination.address.split(":").pop()}`,
      it.hook && `in the kernel (${it.hook})`].filter(Boolean).join("; "))));
  return section("Last refusals", items, "None.");
}

// ---- the table

const COLUMNS = [
  { id: "source", name: "From", of: (it) => label(it.source) },
  { id: "destination", name: "To", of: (it) => label(it.destination) },
  { id: "service", name: "Service", of: (it) => it.service?.split(".").slice(0, 2).join(".") ?? "" },
  { id: "how", name: "How", of: (it) => KINDS[kindOf(it)] },
  { id: "rate", name: "Rate", number: true, of: (it) => rate(it.up + it.down), by: (it) => it.up + it.down },
  { id: "sent", name: "There", number: true, of: (it) => bytes(it.sent), by: (it) => it.sent },
  { id: "received", name: "Back", number: true, of: (it) => bytes(it.received), by: (it) => it.received },
  { id: "open", name: "Open", number: true, of: (it) => number(it.open), by: (it) => it.open },
  { id: "trip", name: "Round trip", number: true, of: (it) => latency(it.round_trip_us), by: (it) => it.round_trip_us ?? -1 },
  { id: "refused", name: "Refused", number: true, of: (it) => number(it.refused), by: (it) => it.refused },
  { id: "last", name: "Last refusal", text: true, of: (it) => it.last_refusal ? why(it.last_refusal) : "" },
];
const rows = new Map();

function makeColumns() {
  $("columns").append(...COLUMNS.map((column) => html("th", { scope: "col", class: column.number ? "number" : "", id: `column-${column.id}` },
    html("button", { type: "button", onclick: () => sortBy(column) }, column.name))));
}

function sortBy(column) {
  const down = state.sort.column === column.id ? !state.sort.down : Boolean(column.number);
  state.sort = { column: column.id, down };
  say(`sorted by ${column.name}, ${down ? "descending" : "ascending"}`);
  table(true);
}

function table(sorted = false) {
  const ids = shown();
  const wanted = [...state.edges.values()].filter((it) => ids.get(it.source ?? OUTSIDE) === "asked" || ids.get(it.destination ?? OUTSIDE) === "asked");
  const column = COLUMNS.find((it) => it.id === state.sort.column);
  const by = column.by ?? column.of;
  wanted.sort((a, b) => {
    const [x, y] = [by(a), by(b)];
    const order = x < y ? -1 : x > y ? 1 : 0;
    return (state.sort.down ? -order : order) || (a.key < b.key ? -1 : 1);
  });
  for (const it of COLUMNS) {
    const how = it.id === state.sort.column ? (state.sort.down ? "descending" : "ascending") : "none";
    setAttribute($(`column-${it.id}`), "aria-sort", how);
  }
  const keys = new Set(wanted.map((it) => it.key));
  for (const [key, row] of rows) if (!keys.has(key)) { row.remove(); rows.delete(key); }
  const body = $("rows");
  // Rows do not move away under somebody who is in them.
  const moves = sorted || !body.contains(document.activeElement);
  let at = body.firstElementChild;
  for (const edge of wanted) {
    let row = rows.get(edge.key);
    if (!row) {
      row = html("tr", {}, ...COLUMNS.map((it) => html("td", { class: it.number ? "number" : it.text ? "text" : "" })));
      row.cells[0].append(go(edge.source ?? OUTSIDE, label(edge.source)));
      row.cells[1].append(go(edge.destination ?? OUTSIDE, label(edge.destination)));
      row.cells[3].append(html("span"), " ", html("span"));
      rows.set(edge.key, row);
      body.append(row);
    }
    COLUMNS.slice(2).forEach((it, index) => setText(it.id === "how" ? row.cells[3].lastChild : row.cells[index + 2], it.of(edge)));
    const kind = kindOf(edge);
    if (row.dataset.kind !== kind) {
      row.dataset.kind = kind;
      row.cells[3].firstChild.replaceWith(icon(kind));
    }
    if (moves && row !== at) body.insertBefore(row, at);
    else if (moves) at = at.nextElementSibling;
  }
}

// ---- the rest of the page

function say(text) { setText($("status"), text); }

function about() {
  const silent = state.agents.filter((it) => it.error);
  const open = [...state.edges.values()].reduce((sum, it) => sum + it.open, 0);
  const flow = [...state.edges.values()].reduce((sum, it) => sum + it.up + it.down, 0);
  const words = [counted(state.nodes.size, "workload", "workloads"), counted(open, "open connection", "open connections"), rate(flow)];
  setText($("summary"), state.answered ? words.join(" · ") : "waiting for the first answer");
  const problems = silent.map((it) => [it.name, `${it.age_ms === null ? "has not answered yet" : `last answer ${ago(it.age_ms)}`}: ${it.error}`]);
  if (state.broken) problems.unshift(["This page's server does not answer", state.answered ? `last answer ${ago(Date.now() - state.answered)}` : state.broken]);
  if (state.leftOut) problems.push(["Not all is shown", `${number(state.leftOut)} connections had no place on the map`]);
  const list = $("problems");
  list.hidden = problems.length === 0;
  while (list.children.length > problems.length) list.lastChild.remove();
  problems.forEach(([name, what], index) => {
    const item = list.children[index] ?? list.appendChild(html("li", {}, html("b"), " ", html("span")));
    setText(item.firstChild, name);
    setText(item.lastChild, what);
  });
  const told = silent.length ? `${counted(silent.length, "agent does", "agents do")} not answer` : state.broken ? "the map's server does not answer" : `${counted(state.nodes.size, "workload", "workloads")}, all agents answer`;
  if (state.answered && told !== state.told) say(state.told = told);
  const empty = !state.answered ? "Waiting for the first answer." : state.nodes.size === 0 ? "No workloads yet. Pods that an agent has wired show here."
    : drawn.cells.size === 0 ? "No workload has that name there." : state.pairs.size === 0 ? "No traffic yet. Connections show as soon as they open." : "";
  $("empty").hidden = !empty;
  setText($("empty"), empty);
}

function namespaces() {
  const names = [...new Set([...state.nodes.values()].map(home))].sort();
  const signature = names.join("\n");
  if (signature === state.names) return;
  state.names = signature;
  const chosen = $("namespace").value;
  $("namespace").replaceChildren(html("option", { value: "" }, "All"), ...names.map((it) => html("option", { value: it }, it)));
  $("namespace").value = names.includes(chosen) ? chosen : "";
}

function render() {
  const began = performance.now();
  namespaces();
  count();
  if ($("map-view").hidden) table();
  else draw();
  details();
  about();
  document.documentElement.dataset.renderMs = (performance.now() - began).toFixed(1);
}

function view(which) {
  $("map-view").hidden = which !== "map";
  $("table-view").hidden = which !== "table";
  setAttribute($("show-map"), "aria-pressed", String(which === "map"));
  setAttribute($("show-table"), "aria-pressed", String(which === "table"));
  render();
}

function zoom(by) {
  state.zoom = by === null ? null : Math.max(0.3, Math.min(3, drawn.scale * by));
  resize();
}

function focusCell(id) {
  const cell = drawn.cells.get(id);
  if (!cell) return;
  drawn.cells.get(state.cursor)?.setAttribute("tabindex", "-1");
  state.cursor = id;
  cell.setAttribute("tabindex", "0");
  cell.focus();
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** The nearest cell in a direction. */
function neighbour(id, dx, dy) {
  const from = drawn.places.get(id);
  let [best, least] = [null, Infinity];
  for (const [other, at] of drawn.places) {
    const [x, y] = [at.x - from.x, at.y - from.y];
    const ahead = x * dx + y * dy;
    if (other === id || ahead <= 0) continue;
    const distance = ahead + 3 * Math.abs(x * dy + y * dx);
    if (distance < least) [best, least] = [other, distance];
  }
  return best;
}

function keys(event) {
  const id = event.target.dataset.id;
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in ways) {
    const next = neighbour(id, ...ways[event.key]);
    if (next) focusCell(next);
  } else if (event.key === "Home") focusCell(drawn.cells.keys().next().value);
  else if (event.key === "End") focusCell([...drawn.cells.keys()].pop());
  else if (event.key === "Enter" || event.key === " ") select({ node: id }, true);
  else return;
  event.preventDefault();
}

async function poll() {
  if (!document.hidden) {
    try {
      const answer = await fetch("map.json", { signal: AbortSignal.timeout(8000) });
      if (!answer.ok) throw new Error(`it answers ${answer.status}`);
      take(await answer.json());
      state.broken = null;
    } catch (error) {
      state.broken = String(error.message ?? error);
      group();
    }
    render();
  }
  setTimeout(poll, PERIOD);
}

function start() {
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  for (const kind of Object.keys(KINDS)) {
    $("arrows").append(svg("marker", { id: `arrow-${kind}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 12, markerHeight: 12, markerUnits: "userSpaceOnUse", orient: "auto" },
      svg("path", { class: `arrow ${kind}`, d: "M0 .8 8 4 0 7.2z" })));
    if (kind !== "unknown") $("legend").append(html("li", {}, icon(kind), KINDS[kind]));
  }
  const dot = (how) => svg("svg", { class: `cell dot ${how}`, viewBox: "0 0 12 12", "aria-hidden": "true" }, svg("circle", { class: "dot", cx: 6, cy: 6, r: 4.5 }), svg("circle", { class: "hub", cx: 6, cy: 6, r: 1.7 }));
  $("legend").append(html("li", {}, dot("enrolled"), "in the mesh"), html("li", {}, dot("enrolled strict"), "takes mutual TLS only"), html("li", {}, dot(""), "not in the mesh"));
  makeColumns();
  // Not at the group of cells: Chromium lets Tab stop at an SVG element that listens for focus.
  $("map-view").addEventListener("keydown", (event) => { if (event.target.dataset.id) keys(event); });
  $("map-view").addEventListener("focusin", (event) => { if (event.target.dataset.id) state.cursor = event.target.dataset.id; });
  $("map").addEventListener("click", (event) => {
    const cell = event.target.closest("[data-id]");
    const line = event.target.closest("[data-pair]");
    if (cell) select({ node: cell.dataset.id });
    else if (line) select({ pair: line.dataset.pair });
    else select(null);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  $("close").addEventListener("click", close);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", () => render());
  $("show-map").addEventListener("click", () => view("map"));
  $("show-table").addEventListener("click", () => view("table"));
  $("skip").addEventListener("click", (event) => { event.preventDefault(); view("table"); $("table-view").focus(); });
  $("zoom-in").addEventListener("click", () => zoom(1.25));
  $("zoom-out").addEventListener("click", () => zoom(0.8));
  $("zoom-fit").addEventListener("click", () => zoom(null));
  new ResizeObserver(() => { if (state.answered) draw(); resize(); }).observe($("map-view"));
  about();
  poll();
}

start();
