// The panel beside the drawing: what is wrong in the cluster, or all that is known of one network or node. Verdicts, causes and
// remedies are those that `netdriver inspect` and `netdriver check` print.
import { el, svg, icon, badge, link, prose, route, count, rate, ago, stateWord, verdictOf, weight, folded } from './dom.js';
import { Table } from './table.js';

/** What is wrong, each with its place and its remedy. */
function findings(list) {
  return el('ul', { class: 'findings' }, list.map((f) => el('li', { class: f.verdict },
    el('p', { class: 'cause' }, icon(f.verdict), el('strong', null, f.verdict), ' ', prose(f.cause)),
    el('dl', null,
      el('dt', null, 'at'), el('dd', null, f.place),
      f.evidence?.length ? [el('dt', null, 'seen'), el('dd', null, f.evidence.map((e) => el('p', null, e)))] : null,
      f.networks?.length ? [el('dt', null, 'in'), el('dd', { class: 'links' }, f.networks.slice(0, 12).map((n) => link('network', n)),
        f.networks.length > 12 ? `and ${f.networks.length - 12} more` : null)] : null,
      f.remedy ? [el('dt', null, 'do'), el('dd', null, prose(f.remedy))] : null))));
}

const byWeight = (a, b) => weight(b.verdict) - weight(a.verdict);

/** Reasons that differ in a figure or the network's name only, at one place, are told once. */
function shared(networks) {
  const alike = new Map();
  for (const n of networks) {
    for (const r of n.reasons) {
      const key = JSON.stringify([r.verdict, r.place, r.cause.replaceAll(n.name, '*').replace(/\d+/g, '#').replace(/endpoints/g, 'endpoint')]);
      if (!alike.has(key)) alike.set(key, { ...r, networks: [] });
      const one = alike.get(key);
      one.cause = common(one.cause, r.cause);
      one.networks.push(n.name);
    }
  }
  return [...alike.values()].sort((a, b) => byWeight(a, b) || b.networks.length - a.networks.length);
}

/** What two sentences have in common, up to the end of a part. */
function common(a, b) {
  if (a === b) return a;
  let i = 0;
  while (i < a.length && a[i] === b[i]) i++;
  const end = Math.max(...[';', ',', ':'].map((c) => a.lastIndexOf(c, i - 1)));
  return end > 0 ? a.slice(0, end) : a;
}

/** The command that says the same in a terminal. */
const command = (text) => el('p', { class: 'command' }, 'In a terminal: ', el('code', null, text));

/** Pairs of a name and what it is; those without are left out. */
const facts = (pairs) => el('dl', { class: 'facts' }, pairs.filter(([, v]) => v !== null && v !== undefined && v !== '')
  .map(([name, value]) => [el('dt', null, name), el('dd', null, value)]));

/** A bar of how much of something is used. */
function gauge(used, all) {
  const share = all > 0 ? Math.min(1, used / all) : 0;
  return svg('svg', { class: `gauge ${share > 0.95 ? 'failed' : share > 0.8 ? 'degraded' : 'healthy'}`, viewBox: '0 0 100 6', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    svg('rect', { width: 100, height: 6, rx: 3, class: 'all' }), svg('rect', { width: Math.max(share * 100, used ? 1.5 : 0), height: 6, rx: 3, class: 'used' }));
}

const subnet = (s) => el('div', { class: 'subnet' },
  el('p', null, s.subnet, s.gateway ? ` · gateway ${s.gateway}` : ''),
  gauge(s.used + s.reserved, s.usable),
  el('p', { class: 'small' }, `${s.used.toLocaleString('en')} of ${s.usable.toLocaleString('en')} used, ${s.reserved} reserved`));

/** The last minutes of a network's rates at this node. */
export function spark(history) {
  const peak = Math.max(1000, ...history.flatMap((h) => [h.sent, h.received]));
  const points = (of) => history.map((h, i) => `${(240 - 4 * (history.length - 1 - i)).toFixed(0)},${(40 - 36 * (of(h) / peak)).toFixed(1)}`).join(' ');
  const now = history.at(-1);
  return el('div', { class: 'spark' },
    svg('svg', { viewBox: '0 0 240 42', role: 'img', 'aria-label': `rates of the last minutes, at most ${rate(peak)}` },
      svg('path', { class: 'axis', d: 'M0 40.5H240' }),
      svg('polyline', { class: 'sent', points: points((h) => h.sent) }),
      svg('polyline', { class: 'received', points: points((h) => h.received) })),
    el('p', { class: 'small' }, el('span', { class: 'sent' }, `↑ sent ${rate(now?.sent)}`), ' ', el('span', { class: 'received' }, `↓ received ${rate(now?.received)}`),
      ` · peak ${rate(peak)}`));
}

export class Details {
  /** place is the panel, ask(peer) lets the daemon check; a peer of null is this node and all others. */
  constructor(place, ask) {
    this.place = place;
    this.ask = ask;
    this.sections = new Map();
    this.tables = new Map();
    this.title = '';
    this.checks = new Map(); // what the last checks said, by peer
    place.addEventListener('keydown', (event) => {
      if (event.key === 'Escape' && this.title !== 'overview') location.hash = '';
    });
  }

  /** Begins anew with something else, which has these parts in this order; each may stay empty. */
  begin(title, parts = []) {
    if (this.title === title) return;
    this.title = title;
    for (const t of this.tables.values()) t.close();
    this.tables.clear();
    this.sections.clear();
    this.slots = new Map(parts.map((name) => [name, el('div')]));
    this.place.replaceChildren(...this.slots.values());
    this.place.scrollTop = 0;
  }

  /** Puts a section into the panel, or anew if what it is made of has changed; focus and open parts stay. */
  section(name, made, make) {
    const text = JSON.stringify(made);
    const old = this.sections.get(name);
    if (old?.text === text) return;
    const element = make();
    const focus = old?.element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    for (const d of element.querySelectorAll('details')) {
      d.open = Boolean(old?.element.querySelector(`details[data-key="${d.dataset.key}"]`)?.open);
    }
    this.slots.get(name).replaceChildren(element);
    if (focus) [...element.querySelectorAll('[data-key]')].find((e) => e.dataset.key === focus)?.focus({ preventScroll: true });
    this.sections.set(name, { text, element });
  }

  /** A table that stays while its rows change; none if there are no rows at first. */
  table(name, title, options, rows) {
    let t = this.tables.get(name);
    if (!t) {
      if (rows.length === 0) return;
      const head = el('h3');
      const place = el('section', { class: 'part' }, head);
      const find = options.find ? this.finder(place, options) : null;
      t = new Table(place, { label: title, ...options });
      Object.assign(t, { heading: head, find, element: place });
      this.tables.set(name, t);
      this.slots.get(name).append(place);
    }
    const words = folded(t.find?.value).split(/\s+/).filter(Boolean);
    const found = words.length === 0 ? rows : rows.filter((r) => { const text = folded(options.find(r)); return words.every((w) => text.includes(w)); });
    t.heading.textContent = found.length === rows.length ? `${title} (${rows.length.toLocaleString('en')})`
      : `${title} (${found.length.toLocaleString('en')} of ${rows.length.toLocaleString('en')})`;
    t.set(found);
    t.again = () => this.table(name, title, options, rows);
  }

  finder(place, options) {
    const input = el('input', { type: 'search', placeholder: options.placeholder, 'aria-label': options.placeholder, autocomplete: 'off', spellcheck: 'false', 'data-key': 'find' });
    input.value = options.filter ?? '';
    input.addEventListener('input', () => [...this.tables.values()].find((t) => t.find === input)?.again());
    place.append(el('p', { class: 'find' }, input));
    return input;
  }

  heading(verdict, title, subtitle, word) {
    return el('div', { class: 'heading' },
      el('p', null, el('a', { class: 'back', href: '#', 'data-key': 'back' }, '← all of the cluster')),
      el('div', { class: 'title' }, el('h2', { tabindex: '-1' }, title), badge(verdict, word)), el('p', { class: 'small' }, subtitle));
  }

  /** What is wrong in the cluster. */
  overview({ networks, nodes, self, read }) {
    this.begin('overview', ['title', 'findings', 'hint', 'check', 'command']);
    const wrong = shared(networks);
    this.section('title', [], () => el('div', { class: 'heading' }, el('h2', { tabindex: '-1' }, 'What is wrong')));
    this.section('findings', [wrong, read, networks.length === 0], () => !read ? el('p', { class: 'small' }, 'reading …') : wrong.length ? findings(wrong) : el('p', { class: 'well' }, icon('healthy'),
      networks.length ? 'Nothing: all networks are as they should be, on every node that has them.' : 'Nothing: the cluster has no network yet.'));
    this.section('hint', [read, networks.length === 0], () => el('div', null,
      !read ? null : networks.length ? el('p', { class: 'small' }, 'Choose a network, a node, or a number in the drawing to see more.')
        : el('p', { class: 'small' }, 'Make one: ', el('code', null, 'docker network create -d custom-overlay --ipam-driver custom-overlay my-net'))));
    if (nodes.length) this.checker(null, self);
    this.section('command', [], () => command('netdriver inspect'));
  }

  /** One network, by its summary until its report is there. */
  network(summary, answer, context) {
    const name = summary?.name ?? context.name;
    this.begin(`network ${name}`, ['heading', 'error', 'reasons', 'spark', 'facts', 'peers', 'services', 'endpoints', 'command']);
    const n = answer?.report;
    if (!summary && !n) {
      this.section('heading', [answer?.error], () => this.heading('unknown', name, answer?.error ?? 'The cluster has no network of this name.'));
      return;
    }
    const verdict = n?.verdict ?? summary.verdict;
    const s = summary ?? {};
    this.section('heading', [verdict, s.docker, s.mode, s.vni, n?.port, s.encrypted, s.internal], () => this.heading(verdict, name,
      [s.mode, s.encrypted ? 'encrypted' : null, s.vni ? `VNI ${s.vni}` : null, n?.port ? `UDP ${n.port}` : null, s.internal ? 'internal' : null,
        s.docker?.some((d) => d !== name) ? `in Docker: ${s.docker.join(', ')}` : null].filter(Boolean).join(' · ')));
    if (answer?.error || this.sections.has('error')) {
      this.section('error', [answer?.error], () => el('p', { class: answer?.error ? 'warning' : 'hidden', role: 'alert' }, answer?.error));
    }
    const reasons = (n?.reasons ?? s.reasons ?? []).toSorted(byWeight);
    this.section('reasons', reasons, () => (reasons.length ? findings(reasons) : el('p', { class: 'well' }, icon('healthy'), 'Nothing is wrong.')));
    if (context.history?.length > 1) this.section('spark', context.history, () => spark(context.history));
    if (!n) {
      this.section('facts', 'wait', () => el('p', { class: 'small' }, 'reading …'));
      return;
    }
    this.section('facts', [n.subnets, n.mtu, n.kernel, n.admission, n.encryption, n.medium, n.revision, n.isolation], () => this.networkFacts(n));
    this.networkTables(n, context);
    this.section('command', name, () => command(`netdriver inspect ${name}`));
  }

  networkFacts(n) {
    const k = n.kernel ?? {};
    const drift = k.drifts?.at(-1);
    const e = n.encryption;
    const dropped = e && Object.entries(e.drops ?? {}).filter(([, v]) => v).map(([name, v]) => `${name} ${v.toLocaleString('en')}`);
    return el('section', { class: 'part' }, facts([
      ['subnets', n.subnets.length ? n.subnets.map(subnet) : null],
      ['MTU', n.mtu?.derived || n.mtu?.mtu],
      ['parent', n.medium?.parent],
      ['kernel', !n.member ? `${n.node} does not have this network` : !k.checked ? 'not compared' : k.inSync ? 'as the records want it' : el('details', { 'data-key': 'differences' },
        el('summary', { 'data-key': 'differ' }, badge('degraded', count(k.differing, 'difference'))), el('pre', { tabindex: '0' }, (k.differences ?? []).join('\n')))],
      ['last drift', drift ? `${ago(drift.time)}, repaired in ${Math.round(drift.seconds * 1000)} ms: ${drift.command}` : null],
      ['encryption', e ? [e.cipher, e.epoch ? `epoch ${e.epoch}` : null, e.problem].filter(Boolean).join(' · ') : null],
      ['pairs', e?.pairs?.length ? el('ul', { class: 'plain' }, e.pairs.map((p) => el('li', null, badge(p.blocked ? 'failed' : 'healthy', p.blocked ? `${p.peer}: ${p.blocked}` : p.peer)))) : null],
      ['dropped', dropped?.length ? dropped.join(', ') : null],
      ['admission', n.admission ? `${n.admission.filter || 'anybody'} · dropped: ${n.admission.strangers ?? 0} from strangers, ${n.admission.containers ?? 0} from containers` : null],
      ['rules', n.isolation?.allow?.length ? n.isolation.allow.join(', ') : n.isolation ? 'isolated' : null],
      ['revision', n.revision?.wanted ? `${n.revision.applied} here, ${n.revision.wanted} wanted` : null],
    ]));
  }

  networkTables(n, context) {
    this.table('peers', 'Nodes', {
      noun: 'node', key: (p) => p.node, rows: 8, columns: [
        { title: 'node', cell: (p) => link('node', p.node), order: (p) => p.node },
        { title: 'state', least: 7.5, cell: (p) => badge(p.problem ? 'failed' : verdictOf(p.state), stateWord(p.state)), order: (p) => -weight(p.problem ? 'failed' : verdictOf(p.state)) },
        { title: 'address', cell: (p) => p.address ?? '–', order: (p) => p.address ?? '' },
        { title: 'endpoints', least: 6, number: true, cell: (p) => String(p.endpoints), order: (p) => -p.endpoints },
      ],
    }, n.peers ?? []);
    const backends = (n.services ?? []).flatMap((s) => (s.backends?.length ? s.backends : [{ task: s.id, name: '–', state: s.idle ? 'idle' : 'no task' }]).map((b) => ({ ...b, service: s })));
    this.table('services', 'Tasks of services', {
      noun: 'task', key: (b) => `${b.service.id}/${b.task}`, rows: 8, columns: [
        { title: 'service', cell: (b) => b.service.name, order: (b) => b.service.name },
        { title: 'VIP', cell: (b) => (b.service.vips ?? []).join(', ') || 'dnsrr' },
        { title: 'task', cell: (b) => b.name, order: (b) => b.name },
        { title: 'state', least: 8.5, cell: (b) => badge(b.state === 'ready' || b.state === 'idle' ? 'healthy' : b.state === 'draining' ? 'degraded' : 'failed', b.state), order: (b) => b.state },
        { title: 'node', cell: (b) => (b.node ? link('node', b.node) : '–'), order: (b) => b.node ?? '' },
      ],
    }, backends);
    this.rates = context.rates ?? {}; // the table's columns live longer than this call
    const flow = (e) => this.rates[e.id];
    this.table('endpoints', 'Endpoints', {
      noun: 'endpoint', key: (e) => e.id, rows: 14, filter: context.filter, placeholder: 'Find container, address, MAC, node or group',
      find: (e) => [e.container, e.containerID, e.service, e.task, e.node, (e.addresses ?? []).join(' '), e.mac, e.group, e.phase, e.id].join(' '),
      columns: [
        { title: 'address', least: 6.2, grow: 1, cell: (e) => (e.addresses ?? []).join(', ') || '–', order: (e) => e.addresses?.[0] ?? '' },
        { title: 'container', least: 5.6, grow: 1.6, cell: (e) => e.container || (e.host ? 'the host' : e.id.slice(0, 12)), order: (e) => e.container || e.id },
        { title: 'node', least: 4, grow: 1, cell: (e) => link('node', e.node), order: (e) => e.node },
        { title: 'seen by', least: 4.4, number: true, cell: (e) => (e.seenBy < 0 ? 'unknown' : e.seenBy < e.members ? badge('degraded', `${e.seenBy}/${e.members}`) : `${e.seenBy}/${e.members}`), order: (e) => e.seenBy - e.members },
        { title: 'sends', least: 4.8, number: true, cell: (e) => rate(flow(e)?.sent), order: (e) => -(flow(e)?.sent ?? -1) },
        { title: 'receives', least: 4.8, number: true, cell: (e) => rate(flow(e)?.received), order: (e) => -(flow(e)?.received ?? -1) },
      ],
    }, n.endpoints ?? []);
  }

  /** One node. */
  node(node, networks, context) {
    this.begin(`node ${context.name}`, ['heading', 'reasons', 'spark', 'facts', 'check', 'networks']);
    if (!node) {
      this.section('heading', [], () => this.heading('unknown', context.name, 'The cluster has no node of this name.'));
      return;
    }
    const here = node.name === context.self;
    this.section('heading', [node.state, node.role, node.vtep, here], () => this.heading(verdictOf(node.state), node.name,
      [node.vtep, node.role, here ? 'all is seen from this node' : null].filter(Boolean).join(' · '), stateWord(node.state)));
    const member = networks.map((n) => ({ ...n, peer: n.peers.find((p) => p.node === node.name) })).filter((n) => n.peer);
    const wrong = shared(member.map((n) => ({ ...n, reasons: n.reasons.filter((r) => r.place.split(/[\s(]/)[0] === node.name) })));
    for (const [network, problem] of Object.entries(node.problems ?? {})) {
      wrong.push({ verdict: 'failed', cause: problem, place: `${node.name}, network ${network}`, networks: [network], remedy: `on ${node.name}: netdriver check` });
    }
    this.section('reasons', wrong, () => (wrong.length ? findings(wrong) : el('p', { class: 'well' }, icon(verdictOf(node.state)), 'No network tells of a problem here.')));
    const flows = context.flows;
    if (flows?.history?.length > 1) this.section('spark', flows.history, () => spark(flows.history));
    else if (flows?.error) this.section('spark', flows.error, () => el('p', { class: 'small' }, 'No rates: ', prose(flows.error)));
    this.rates = flows?.rates ?? {};
    this.section('facts', [node.version, node.docker, node.underlayMTU, node.started, node.unbalanced, node.state], () => el('section', { class: 'part' }, facts([
      ['version', node.version], ['Docker', node.docker], ['underlay', node.underlayMTU ? `MTU ${node.underlayMTU}` : null],
      ['daemon', node.started ? `started ${ago(node.started)}` : null], ['virtual addresses', node.unbalanced ? `not balanced: ${node.unbalanced}` : null],
    ])));
    this.checker(here ? null : node.name, node.name);
    this.table('networks', 'Networks', {
      noun: 'network', key: (n) => n.name, rows: 14, columns: [
        { title: 'network', least: 5, grow: 1.5, cell: (n) => el('a', { href: `${route('network', n.name)}/${encodeURIComponent(node.name)}`, 'data-key': n.name }, n.name), order: (n) => n.name },
        { title: 'here', least: 6.3, cell: (n) => badge(n.peer.problem ? 'failed' : verdictOf(n.peer.state), stateWord(n.peer.state)), order: (n) => -weight(n.peer.problem ? 'failed' : verdictOf(n.peer.state)) },
        { title: 'verdict', least: 6.2, cell: (n) => badge(n.verdict), order: (n) => -weight(n.verdict) },
        { title: 'endpoints', least: 5.1, number: true, cell: (n) => String(n.peer.endpoints), order: (n) => -n.peer.endpoints },
        { title: 'sends', least: 4.8, number: true, cell: (n) => rate(this.rates[n.name]?.sent), order: (n) => -(this.rates[n.name]?.sent ?? -1) },
        { title: 'receives', least: 4.8, number: true, cell: (n) => rate(this.rates[n.name]?.received), order: (n) => -(this.rates[n.name]?.received ?? -1) },
      ],
    }, member);
  }

  /** Lets the daemon look, and shows what it found. */
  checker(peer, name) {
    const state = this.checks.get(peer) ?? {};
    this.section('check', [peer, name, state], () => el('section', { class: 'part check' },
      el('button', { type: 'button', 'data-key': 'check', 'aria-disabled': state.asked ? 'true' : null, onclick: () => !state.asked && this.check(peer) },
        state.asked ? 'Checking …' : peer === null ? `Check ${name} and its way to all others` : `Check the way to ${name}`),
      state.error ? el('p', { class: 'warning', role: 'alert' }, state.error) : null,
      state.report ? this.checked(state.report) : null,
      command(`netdriver check${peer === null ? '' : ` --peer ${peer}`}`)));
  }

  check(peer) {
    this.checks.set(peer, { asked: true });
    this.ask(peer);
  }

  /** What the daemon has found. */
  answered({ peer, report, error }) { this.checks.set(peer, { report, error }); }

  checked(r) {
    return el('div', { role: 'status' },
      el('p', null, badge(r.verdict), ` seen from ${r.node}`),
      r.findings.length ? findings(r.findings.map((f) => ({ ...f, verdict: f.severity }))) : null,
      el('details', { 'data-key': 'checks' }, el('summary', { 'data-key': 'checked' }, `${count(r.checks.length, 'thing')} looked at`),
        el('ul', { class: 'plain' }, r.checks.map((c) => el('li', null, badge(c.verdict, c.name), ' ', el('span', { class: 'small' }, c.looks))))));
  }
}
