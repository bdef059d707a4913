// A worker: it asks the daemon, and tells the page what has changed. So the page's thread reads no JSON and is free to draw.

const EVERY = 2000; // milliseconds from one round to the next, at least
const REST = 10; // and this many times as long as a round took
const PATIENCE = 30000; // milliseconds: reports take 20 s at most

let paused = false;
let watched = null; // what is open: { kind: 'network' or 'node', name }
let timer = 0;
let running = false;

const told = { networks: new Map(), nodes: '', network: '' }; // what the page has, as text
let mine = new Map(); // counters of the round before, and of another node's
let others = new Map();

async function get(path) {
  const response = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
  const text = await response.text();
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Error(text.trim() || response.statusText);
  }
  if (!response.ok) throw new Error(body.error ?? response.statusText);
  return body;
}

/** What the drawing needs of a network's report. */
function summary(n) {
  return {
    name: n.network, verdict: n.verdict, reasons: n.reasons ?? [], mode: n.mode, vni: n.vni, member: n.member,
    encrypted: Boolean(n.encryption), internal: n.internal, subnets: n.subnets ?? [], endpoints: n.endpointCount,
    docker: [...new Set((n.dockerNetworks ?? []).map((d) => d.name))],
    peers: (n.peers ?? []).map((p) => ({ node: p.node, state: p.state, endpoints: p.endpoints, problem: p.problem })),
  };
}

/** What changes at each moment is left out. */
const steady = (node) => ({ ...node, lastStatus: undefined });

function changedNetworks(all) {
  const changed = [];
  const names = all.map((n) => n.network);
  for (const n of all.map(summary)) {
    const text = JSON.stringify(n);
    if (told.networks.get(n.name) !== text) {
      told.networks.set(n.name, text);
      changed.push(n);
    }
  }
  for (const name of told.networks.keys()) if (!names.includes(name)) told.networks.delete(name);
  return { names, changed };
}

function changedNodes(nodes) {
  const text = JSON.stringify(nodes.map(steady));
  if (text === told.nodes) return null;
  told.nodes = text;
  return nodes;
}

/** Bits per second of each network and endpoint, from two readings of the counters, and what the next one is compared with. */
function rates(traffic, before) {
  const now = new Map();
  const out = { networks: {}, endpoints: {} };
  const taken = Date.parse(traffic.data.taken);
  const measure = (into, key, name, flow) => {
    const was = before.get(key);
    now.set(key, { ...flow, taken });
    if (was && was.taken === taken) {
      now.set(key, was);
      if (was.rate) into[name] = was.rate;
      return;
    }
    if (!was || flow.sentBytes < was.sentBytes || flow.receivedBytes < was.receivedBytes) return;
    const per = (bytes, old) => (8000 * (bytes - old)) / (taken - was.taken);
    into[name] = { sent: per(flow.sentBytes, was.sentBytes), received: per(flow.receivedBytes, was.receivedBytes) };
    now.get(key).rate = into[name];
  };
  for (const n of traffic.networks ?? []) {
    measure(out.networks, `network ${n.network}`, n.network, n.peers);
    for (const e of n.endpoints ?? []) measure(out.endpoints, `endpoint ${e.id}`, e.id, e);
  }
  return [out, now];
}

/** Nodes as far as the networks tell, where the nodes themselves could not be asked. */
function nodesOf(networks) {
  const out = new Map();
  for (const n of networks) {
    for (const p of n.peers ?? []) {
      if (!out.has(p.node)) out.set(p.node, { name: p.node, vtep: p.address, state: p.state, networks: 0 });
      out.get(p.node).networks++;
    }
  }
  return [...out.values()];
}

async function round() {
  const [networks, nodes, health, traffic] = await Promise.allSettled(
    ['networks', 'nodes', 'health', 'traffic'].map((path) => get(`v1/${path}`)));
  if (networks.status === 'rejected') throw networks.reason;
  const { names, changed } = changedNetworks(networks.value.networks);
  let flows = null;
  if (traffic.value) [flows, mine] = rates(traffic.value, mine);
  postMessage({
    kind: 'cluster', names, changed, source: networks.value.data.source,
    nodes: changedNodes(nodes.value?.nodes ?? nodesOf(networks.value.networks)),
    health: health.value ?? null, rates: flows,
  });
  await (watched?.kind === 'node' ? flowsOf(watched) : report(watched));
}

/** The whole report of the network that is open. */
async function report(open) {
  if (open === null) return;
  const { name } = open;
  try {
    const r = await get(`v1/networks/${encodeURIComponent(name)}`);
    const text = JSON.stringify({ ...r, data: undefined, peers: (r.peers ?? []).map(steady) });
    if (open !== watched || text === told.network) return;
    told.network = text;
    postMessage({ kind: 'network', name, report: r });
  } catch (error) {
    if (open === watched) postMessage({ kind: 'network', name, error: error.message });
  }
}

/** The rates of the node that is open, by its own counters. */
async function flowsOf(open) {
  const { name } = open;
  try {
    const traffic = await get(`v1/traffic?node=${encodeURIComponent(name)}`);
    if (open !== watched) return;
    let flows;
    [flows, others] = rates(traffic, others);
    postMessage({ kind: 'node', name, rates: flows.networks });
  } catch (error) {
    if (open === watched) postMessage({ kind: 'node', name, error: error.message });
  }
}

async function run() {
  clearTimeout(timer);
  if (running) return;
  running = true;
  const begin = performance.now();
  try {
    await round();
  } catch (error) {
    postMessage({ kind: 'lost', error: error.name === 'TypeError' ? 'it does not answer' : error.message });
  }
  running = false;
  if (!paused) timer = setTimeout(run, Math.max(EVERY, REST * (performance.now() - begin)));
}

async function check(peer) {
  try {
    const query = peer === null ? '' : `?peer=${encodeURIComponent(peer)}`;
    postMessage({ kind: 'check', peer, report: await get(`v1/check${query}`) });
  } catch (error) {
    postMessage({ kind: 'check', peer, error: error.message });
  }
}

onmessage = ({ data }) => {
  switch (data.kind) {
    case 'pause':
      paused = data.paused;
      if (paused) clearTimeout(timer);
      else run();
      break;
    case 'watch':
      watched = data.open;
      told.network = '';
      others = new Map();
      if (watched?.kind === 'node') flowsOf(watched);
      else report(watched);
      break;
    case 'check':
      check(data.peer);
      break;
  }
};

run();
