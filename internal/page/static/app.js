// The page: it keeps what the feed tells, and gives it to the drawing, the tables and the panel.
import { el, badge, link, count, rate, span, stateWord, verdictOf, worst, weight, folded } from './dom.js';
import { Topology } from './topology.js';
import { Table } from './table.js';
import { Details } from './details.js';

const KEEP = 60; // rates of a network that are kept
const STALE = 15000; // milliseconds without an answer after which that is said

const $ = (id) => document.getElementById(id);
const model = {
  networks: new Map(), names: [], nodes: [], health: null, source: '', rates: { networks: {}, endpoints: {} }, history: new Map(),
  read: 0, lost: '',
};
const view = { kind: '', name: '', filter: '', words: '', problems: false, paused: false };
let opened = null; // what is known of the network or node that is open

const feed = new Worker('feed.js', { type: 'module' });
const details = new Details($('details'), (peer) => { feed.postMessage({ kind: 'check', peer }); later(); });
const topology = new Topology($('drawing'), (kind, name, filter) => {
  const hash = `#/${kind}/${encodeURIComponent(name)}${filter ? `/${encodeURIComponent(filter)}` : ''}`;
  if (location.hash === hash) focusDetails();
  else location.hash = hash;
});

// What is shown follows from the model and the view, at most once per frame.

let frame;
function later() {
  frame ??= requestAnimationFrame(() => {
    frame = undefined;
    render();
  });
}

/** Nodes with what the networks know of them. */
function withEndpoints(networks) {
  const sums = new Map();
  const trouble = new Map();
  for (const n of networks) {
    for (const p of n.peers) {
      sums.set(p.node, (sums.get(p.node) ?? 0) + p.endpoints);
      if (p.problem) trouble.set(p.node, 'failed');
      else if (p.state === 'behind' && !trouble.has(p.node)) trouble.set(p.node, 'degraded');
    }
  }
  return model.nodes.map((n) => ({ ...n, endpoints: sums.get(n.name) ?? 0, trouble: Object.keys(n.problems ?? {}).length ? 'failed' : trouble.get(n.name) ?? 'healthy' }));
}

/** What is wrong with a node, in a word or two. */
const nodeWord = (n) => (n.state === 'DOWN' || n.state === 'unknown' ? n.state : { failed: 'with problems', degraded: 'behind' }[n.trouble] ?? 'ok');
const shapes = { failed: 'failed', DOWN: 'failed', 'with problems': 'failed', degraded: 'degraded', behind: 'degraded', unknown: 'unknown' };

const nodeVerdict = (n) => worst([verdictOf(n.state), n.trouble]);

/** What the filter leaves. A name that only nodes have leaves all networks, and the other way round. */
function filtered(nodes, networks) {
  const has = (text) => folded(text).includes(view.words);
  let some = { nodes: nodes.filter((n) => has(`${n.name} ${n.vtep}`)), networks: networks.filter((n) => has(`${n.name} ${n.docker.join(' ')}`)) };
  if (some.nodes.length === 0 && some.networks.length > 0) {
    const on = new Set(some.networks.flatMap((n) => n.peers.map((p) => p.node)));
    some.nodes = nodes.filter((n) => on.has(n.name));
  } else if (some.networks.length === 0 && some.nodes.length > 0) some.networks = networks;
  if (view.problems) {
    const bad = some.networks.filter((n) => n.verdict !== 'healthy');
    some = { nodes: some.nodes.filter((n) => nodeVerdict(n) !== 'healthy' || bad.some((b) => b.reasons.some((r) => r.place.split(/[\s(]/)[0] === n.name))), networks: bad };
  }
  return some;
}

function render() {
  const networks = model.names.map((name) => model.networks.get(name));
  const nodes = withEndpoints(networks);
  const verdict = model.read ? worst(networks.map((n) => n.verdict)) : 'unknown';
  renderHeader(verdict);
  renderTiles(networks, nodes);
  const some = filtered(nodes, networks);
  const self = model.health?.node ?? nodes.find((n) => n.state === 'local')?.name;
  renderCluster(some, nodes, networks, self);
  renderDetails(nodes, networks, self);
}

let said = '';
function renderHeader(verdict) {
  const word = model.read ? verdict : 'reading …';
  if (word === said) return;
  $('verdict').replaceChildren(badge(verdict, word));
  $('announce').textContent = said && model.read ? `The verdict on the cluster is now: ${verdict}` : '';
  said = word;
  document.title = model.read ? `${verdict === 'healthy' ? '' : `(${verdict}) `}netdriver` : 'netdriver';
}

let tiled = '';
function renderTiles(networks, nodes) {
  const tally = (words) => ['failed', 'DOWN', 'with problems', 'degraded', 'behind', 'unknown'].map((w) => [w, words.filter((x) => x === w).length]).filter(([, n]) => n);
  const total = Object.values(model.rates.networks).reduce((a, r) => ({ sent: a.sent + r.sent, received: a.received + r.received }), { sent: 0, received: 0 });
  const measured = Object.keys(model.rates.networks).length > 0;
  const tiles = [
    ['networks', networks.length, tally(networks.map((n) => n.verdict))],
    ['nodes', nodes.length, tally(nodes.map(nodeWord))],
    ['endpoints', networks.reduce((sum, n) => sum + n.endpoints, 0), []],
    ['sent by this node', measured ? rate(total.sent) : '–', []],
    ['received by it', measured ? rate(total.received) : '–', []],
  ];
  const text = JSON.stringify(tiles);
  if (text === tiled) return;
  tiled = text;
  $('tiles').replaceChildren(...tiles.map(([name, n, bad]) => el('div', { class: 'tile' },
    el('p', { class: 'figure' }, typeof n === 'number' ? n.toLocaleString('en') : n), el('p', null, name),
    el('p', { class: 'bad' }, bad.map(([word, k]) => el('button', { type: 'button', title: 'show problems only', onclick: onlyProblems }, badge(shapes[word], `${k} ${word}`)))))));
}

let lists = null;
function renderCluster(some, nodes, networks, self) {
  const drawing = document.querySelector('input[name=view]:checked').value === 'drawing';
  const empty = some.nodes.length === 0 && some.networks.length === 0;
  $('drawing').hidden = !drawing || empty;
  $('tables').hidden = drawing;
  $('none').hidden = !empty || !drawing;
  $('none').textContent = !model.read ? 'Reading the cluster …' : nodes.length && networks.length ? 'Nothing is left by the filter.' : 'The cluster has no network yet.';
  if (drawing) {
    topology.set({ nodes: some.nodes, networks: some.networks, self, rates: model.rates.networks });
    topology.select(view.kind, view.name);
    return;
  }
  lists ??= makeLists();
  $('networks-title').textContent = `Networks (${some.networks.length.toLocaleString('en')})`;
  $('nodes-title').textContent = `Nodes (${some.nodes.length.toLocaleString('en')})`;
  lists.networks.set(some.networks);
  lists.nodes.set(some.nodes.map((n) => ({ ...n, on: networks.filter((w) => w.peers.some((p) => p.node === n.name)) })));
}

function makeLists() {
  const used = (n) => n.subnets.reduce((sum, s) => sum + s.used, 0);
  return {
    networks: new Table($('networks'), {
      label: 'Networks', noun: 'network', key: (n) => n.name, rows: 12, columns: [
        { title: 'network', least: 7, grow: 1.4, cell: (n) => link('network', n.name), order: (n) => n.name },
        { title: 'verdict', least: 7.5, cell: (n) => badge(n.verdict), order: (n) => -weight(n.verdict) },
        { title: 'kind', least: 6, grow: 1, cell: (n) => [n.mode, n.encrypted ? 'encrypted' : ''].filter(Boolean).join(', '), order: (n) => n.mode },
        { title: 'nodes', least: 4.5, number: true, cell: (n) => String(n.peers.length), order: (n) => -n.peers.length },
        { title: 'endpoints', least: 6, number: true, cell: (n) => String(n.endpoints), order: (n) => -n.endpoints },
        { title: 'addresses used', least: 8, number: true, cell: (n) => used(n).toLocaleString('en'), order: (n) => -used(n) },
        { title: 'sent', least: 6.5, number: true, cell: (n) => rate(model.rates.networks[n.name]?.sent), order: (n) => -(model.rates.networks[n.name]?.sent ?? -1) },
        { title: 'received', least: 6.5, number: true, cell: (n) => rate(model.rates.networks[n.name]?.received), order: (n) => -(model.rates.networks[n.name]?.received ?? -1) },
        { title: 'first problem', least: 8, grow: 3, cell: (n) => n.reasons[0]?.cause ?? '' },
      ],
    }),
    nodes: new Table($('nodes'), {
      label: 'Nodes', noun: 'node', key: (n) => n.name, rows: 14, columns: [
        { title: 'node', least: 7, grow: 1.4, cell: (n) => link('node', n.name), order: (n) => n.name },
        { title: 'state', least: 7.5, cell: (n) => badge(nodeVerdict(n), stateWord(n.state)), order: (n) => -weight(nodeVerdict(n)) },
        { title: 'address', least: 6.5, grow: 1, cell: (n) => n.vtep ?? '–', order: (n) => n.vtep ?? '' },
        { title: 'role', least: 5.5, cell: (n) => n.role ?? '', order: (n) => n.role ?? '' },
        { title: 'endpoints', least: 6, number: true, cell: (n) => String(n.endpoints), order: (n) => -n.endpoints },
        { title: 'networks, with endpoints', least: 8, grow: 4, order: (n) => -n.on.length,
          cell: (n) => n.on.map((w) => `${w.name} ${w.peers.find((p) => p.node === n.name).endpoints}`).join(', ') },
      ],
    }),
  };
}

function renderDetails(nodes, networks, self) {
  if (view.kind === 'network') {
    const answer = opened?.name === view.name ? opened : null;
    details.network(model.networks.get(view.name), answer, { name: view.name, filter: view.filter, rates: model.rates.endpoints, history: model.history.get(view.name) });
  } else if (view.kind === 'node') {
    details.node(nodes.find((n) => n.name === view.name), networks, { name: view.name, self, flows: opened?.name === view.name ? opened : null });
  } else details.overview({ networks, nodes, self, read: model.read > 0 });
}

// What the feed tells.

const told = {
  cluster(data) {
    model.names = data.names;
    for (const n of data.changed) model.networks.set(n.name, n);
    for (const name of model.networks.keys()) {
      if (data.names.includes(name)) continue;
      model.networks.delete(name);
      model.history.delete(name);
    }
    model.nodes = data.nodes ?? model.nodes;
    model.health = data.health ?? model.health;
    model.source = data.source;
    model.read = performance.now();
    model.lost = '';
    model.rates = data.rates ?? { networks: {}, endpoints: {} };
    for (const [name, r] of Object.entries(model.rates.networks)) {
      model.history.set(name, [...(model.history.get(name) ?? []), r].slice(-KEEP));
    }
    age();
  },
  network(data) { if (data.name === view.name) opened = { ...opened, name: data.name, error: undefined, ...data }; },
  node(data) {
    if (data.name !== view.name) return;
    const history = opened?.history ?? [];
    const all = Object.values(data.rates ?? {});
    const sum = { sent: all.reduce((s, r) => s + r.sent, 0), received: all.reduce((s, r) => s + r.received, 0) };
    opened = { ...data, history: all.length ? [...history, sum].slice(-KEEP) : history };
  },
  check(data) { details.answered(data); },
  lost(data) { model.lost = data.error; age(); },
};
feed.onmessage = ({ data }) => { told[data.kind](data); later(); };
feed.onerror = () => told.lost({ error: 'this browser cannot run the page: it needs module workers' });

/** Says how old is what is shown. */
function age() {
  const since = performance.now() - model.read;
  const parts = model.read ? [`seen from ${model.health?.node ?? 'this node'}`,
    model.source === 'store' ? 'from the store' : `from ${model.source === 'mirror' ? "the node's copy: the store is away" : 'the kernel only: no records could be read'}`,
    `${span(since)} old`] : [];
  $('source').textContent = parts.join(' · ');
  const lost = !view.paused && (model.lost !== '' || (model.read > 0 && since > STALE && !document.hidden));
  if ($('lost').hidden === lost) {
    $('lost').hidden = !lost;
    document.body.classList.toggle('stale', lost);
  }
  const text = lost ? `No answer from the daemon${model.lost ? `: ${model.lost}` : ''}. ${model.read ? 'What you see is old.' : ''} Its log says why; \`netdriver inspect\` works without it.` : '';
  if ($('lost').textContent !== text) $('lost').textContent = text;
}
setInterval(age, 1000);

// What the reader does.

function focusDetails() {
  $('details').querySelector('h2')?.focus({ preventScroll: matchMedia('(min-width: 70rem)').matches });
}

function follow() {
  const [, kind = '', name = '', filter = ''] = location.hash.split('/').map((part) => {
    try { return decodeURIComponent(part); } catch { return part; }
  });
  const before = { ...view };
  Object.assign(view, kind === 'network' || kind === 'node' ? { kind, name, filter } : { kind: '', name: '', filter: '' });
  if (before.filter !== view.filter && before.name === view.name) details.begin(''); // the same network, with another filter
  if (before.kind !== view.kind || before.name !== view.name) {
    opened = null;
    feed.postMessage({ kind: 'watch', open: view.kind ? { kind: view.kind, name: view.name } : null });
  }
  render();
}
addEventListener('hashchange', () => {
  const from = { ...topology.active };
  follow();
  if (view.kind) focusDetails();
  else if (details.place.contains(document.activeElement) || document.activeElement === document.body) topology.find(from)?.focus({ preventScroll: true });
});

// A link to a place in the page is no other address: what is open stays.
for (const skip of document.querySelectorAll('.skip')) {
  skip.addEventListener('click', (event) => {
    event.preventDefault();
    $(skip.hash.slice(1)).focus();
  });
}

$('filter').addEventListener('input', (event) => { view.words = folded(event.target.value.trim()); later(); });
$('problems').addEventListener('change', (event) => { view.problems = event.target.checked; later(); });
for (const radio of document.querySelectorAll('input[name=view]')) radio.addEventListener('change', later);

function onlyProblems() {
  $('problems').checked = view.problems = true;
  later();
}

function setPaused(paused) {
  view.paused = paused;
  $('pause').setAttribute('aria-pressed', String(paused));
  $('pause').textContent = paused ? 'Go on' : 'Pause';
  feed.postMessage({ kind: 'pause', paused: paused || document.hidden });
}
$('pause').addEventListener('click', () => setPaused(!view.paused));
document.addEventListener('visibilitychange', () => feed.postMessage({ kind: 'pause', paused: view.paused || document.hidden }));

follow();
