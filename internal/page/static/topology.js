// The drawing: hosts are rows, networks are the buses that cross them, and a mark at a crossing is the endpoints that a host has
// in a network. Only what is in sight is in the page, so that 300 hosts scroll like three.
import { svg, el, brief, rate, count, stateWord, verdictOf, weight } from './dom.js';

const GUTTER = 196; // pixels for a host's card
const NARROW = 132; // the same where there is little room
const WIDE = 104; // from this width on a network's name is written level
const SPARE = 3; // rows and columns drawn beyond those in sight

const clamp = (x, least, most) => Math.min(most, Math.max(least, x));

/** Cuts a text to about so many pixels; the whole is in the label. */
function cut(text, pixels, perLetter = 7.2) {
  const letters = Math.floor(pixels / perLetter);
  return text.length > letters ? `${text.slice(0, Math.max(1, letters - 1))}…` : text;
}

/** An icon inside of the drawing. */
const mark = (verdict, x, y, size) =>
  svg('use', { href: `#i-${verdict}`, class: `icon ${verdict}`, x: x - size / 2, y: y - size / 2, width: size, height: size });

export class Topology {
  /** open(kind, name) is called for what is chosen. */
  constructor(place, open) {
    this.place = place;
    this.open = open;
    this.nodes = [];
    this.networks = [];
    this.rows = new Map(); // by node
    this.heads = new Map(); // by network
    this.buses = new Map();
    this.active = { node: null, network: null }; // null: the row of heads, the column of hosts
    this.selected = '';
    this.busLayer = svg('g');
    this.rowLayer = svg('g');
    this.headLayer = svg('g', { role: 'row', 'aria-rowindex': '1' });
    this.corner = svg('rect', { class: 'pane' });
    this.headPane = svg('rect', { class: 'pane' });
    this.headMoves = svg('g');
    this.headLayer.append(this.headPane, this.headMoves, this.corner);
    this.svg = svg('svg', { role: 'grid', 'aria-label': 'Topology: hosts are rows, networks columns; arrow keys move, Enter opens' },
      this.busLayer, this.rowLayer, this.headLayer);
    this.canvas = el('div', { class: 'canvas' }, this.svg);
    place.append(this.canvas);
    place.addEventListener('scroll', () => this.later(), { passive: true });
    new ResizeObserver(() => this.later(true)).observe(place);
    this.svg.addEventListener('click', (event) => this.choose(event.target.closest('[data-kind]')));
    this.svg.addEventListener('keydown', (event) => this.key(event));
    this.svg.addEventListener('focusin', (event) => this.focused(event.target.closest('[data-kind]')));
  }

  /** Shows nodes and networks in this order. self is the node that all is seen from, rates are its networks'. */
  set({ nodes, networks, self, rates }) {
    this.nodes = nodes;
    this.networks = networks.map((n) => ({ ...n, at: new Map(n.peers.map((p) => [p.node, p])) }));
    this.self = self;
    this.rates = rates ?? {};
    this.later(true);
  }

  /** Marks what is open, as its address in the page says. */
  select(kind, name) {
    this.selected = kind ? `${kind}/${name}` : '';
    this.later(true);
  }

  later(fresh = false) {
    this.fresh ||= fresh;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  /** Sizes by how much there is to show. All reading of the layout is here, before anything is written. */
  measure() {
    const { clientWidth, clientHeight: height, scrollLeft: left, scrollTop: top } = this.place;
    const width = clientWidth - 1; // it may be rounded up
    const gutter = width < 560 ? NARROW : GUTTER;
    const column = clamp(Math.floor((width - gutter) / Math.max(1, this.networks.length)), 46, 190);
    const level = column >= WIDE;
    const head = level ? 62 : 112;
    const row = clamp(Math.floor((height - head) / Math.max(1, this.nodes.length)), 30, 72);
    const slope = level ? 0 : 76; // the last network's slanting name needs room at the right
    return { width, height, left, top, gutter, column, level, head, row, slope };
  }

  draw() {
    const m = this.measure();
    if (m.width <= 0) return; // it is hidden
    const before = this.size;
    this.size = m;
    if (before?.gutter !== m.gutter || before?.column !== m.column || before?.row !== m.row || before?.level !== m.level) this.clear();
    if (this.fresh || before?.width !== m.width || before?.height !== m.height) this.resize(m);
    this.columnsInSight = this.range(m.left, m.width - m.gutter, m.column, this.networks.length);
    this.rowsInSight = this.range(m.top, m.height - m.head, m.row, this.nodes.length);
    this.drawBuses(m);
    this.drawRows(m);
    this.drawHeads(m);
    this.fresh = false;
    this.tabStop();
  }

  clear() {
    for (const map of [this.rows, this.heads, this.buses]) {
      for (const { element } of map.values()) element.remove();
      map.clear();
    }
  }

  resize(m) {
    const wide = m.gutter + this.networks.length * m.column + m.slope;
    const high = m.head + this.nodes.length * m.row + 6;
    this.canvas.style.width = `${wide}px`;
    this.canvas.style.height = `${high}px`;
    this.place.style.setProperty('--needed', `${m.head + this.nodes.length * Math.max(m.row, 34) + 18}px`);
    const set = (element, values) => Object.entries(values).forEach(([k, v]) => element.setAttribute(k, v));
    set(this.svg, {
      width: m.width, height: Math.min(m.height, high),
      'aria-rowcount': this.nodes.length + 1, 'aria-colcount': this.networks.length + 1,
    });
    set(this.corner, { width: m.gutter, height: m.head });
    set(this.headPane, { width: m.width, height: m.head });
  }

  range(scrolled, shown, size, length) {
    const from = Math.floor(scrolled / size / SPARE) * SPARE - SPARE; // in steps, so that most scrolling changes nothing
    return [clamp(from, 0, length), clamp(Math.ceil((scrolled + shown) / size / SPARE) * SPARE + SPARE, 0, length)];
  }

  x(column) { return this.size.gutter + (column + 0.5) * this.size.column; }

  /** Keeps the elements of a map that are wanted or have the focus. */
  prune(map, wanted) {
    for (const [key, item] of map) {
      if (wanted.has(key) || item.element.contains(document.activeElement)) continue;
      item.element.remove();
      map.delete(key);
    }
  }

  drawBuses(m) {
    const bottom = Math.min(m.height, m.head + this.nodes.length * m.row - m.top);
    this.busLayer.setAttribute('transform', `translate(${-m.left},0)`);
    this.prune(this.buses, new Set(this.networks.slice(...this.columnsInSight).map((n) => n.name)));
    for (let i = this.columnsInSight[0]; i < this.columnsInSight[1]; i++) {
      const n = this.networks[i];
      let bus = this.buses.get(n.name);
      if (!bus) {
        bus = { element: svg('path') };
        this.buses.set(n.name, bus);
        this.busLayer.append(bus.element);
      }
      const d = `M${this.x(i)} ${m.head - 4}V${bottom}`;
      const look = `bus ${n.verdict}${this.selected === `network/${n.name}` ? ' selected' : ''}`;
      if (bus.d !== d) bus.element.setAttribute('d', bus.d = d);
      if (bus.look !== look) bus.element.setAttribute('class', bus.look = look);
    }
  }

  drawHeads(m) {
    this.headMoves.setAttribute('transform', `translate(${-m.left},0)`);
    this.prune(this.heads, new Set(this.networks.slice(...this.columnsInSight).map((n) => n.name)));
    for (let i = this.columnsInSight[0]; i < this.columnsInSight[1]; i++) this.drawHead(this.networks[i], i, m);
  }

  drawHead(n, i, m) {
    const flow = this.rates[n.name];
    const text = JSON.stringify([i, n.verdict, n.endpoints, flow && [rate(flow.sent), rate(flow.received)], this.selected === `network/${n.name}`]);
    let head = this.heads.get(n.name);
    if (!head) {
      head = { element: svg('g', { role: 'columnheader', 'data-kind': 'network', 'data-network': n.name, tabindex: '-1' }) };
      this.heads.set(n.name, head);
      this.headMoves.append(head.element);
    }
    if (head.text === text) return;
    head.text = text;
    const x = this.x(i);
    const said = `network ${n.name}: ${n.verdict}, ${count(n.endpoints, 'endpoint')}` +
      (flow ? `, this node sends ${rate(flow.sent)} and receives ${rate(flow.received)}` : '');
    const g = head.element;
    g.setAttribute('aria-label', said);
    g.setAttribute('aria-colindex', i + 2);
    g.setAttribute('class', `head ${n.verdict}${this.selected === `network/${n.name}` ? ' selected' : ''}`);
    const w = m.column;
    if (m.level) {
      const name = cut(n.name, w - 44, 8.2);
      g.replaceChildren(
        svg('title', null, said),
        svg('rect', { class: 'hit', x: x - w / 2 + 2, y: 4, width: w - 4, height: m.head - 12, rx: 7 }),
        mark(n.verdict, x - 4.1 * name.length - 7, 19, 14),
        svg('text', { class: 'name', x: x + 6, y: 24, 'text-anchor': 'middle' }, name),
        svg('text', { class: 'small', x, y: 43, 'text-anchor': 'middle' },
          flow ? cut(`↑${rate(flow.sent)} ↓${rate(flow.received)}`, w - 4, 5.6) : count(n.endpoints, 'endpoint')));
    } else {
      g.replaceChildren(
        svg('title', null, said),
        svg('rect', { class: 'hit', x: x - w / 2 + 1, y: m.head - 30, width: w - 2, height: 26, rx: 6 }),
        mark(n.verdict, x, m.head - 17, 14),
        svg('text', { class: 'name', x: 0, y: 0, transform: `translate(${x + 2},${m.head - 32}) rotate(-48)` }, cut(n.name, 106)));
    }
  }

  drawRows(m) {
    const wanted = new Set();
    for (let i = this.rowsInSight[0]; i < this.rowsInSight[1]; i++) wanted.add(this.nodes[i].name);
    this.prune(this.rows, wanted);
    let before = null;
    for (let i = this.rowsInSight[0]; i < this.rowsInSight[1]; i++) {
      const { element } = this.drawRow(this.nodes[i], i, m);
      const place = before ? before.nextSibling : this.rowLayer.firstChild;
      if (place !== element) this.rowLayer.insertBefore(element, place);
      before = element;
    }
  }

  drawRow(node, i, m) {
    let row = this.rows.get(node.name);
    if (!row) {
      row = { element: svg('g', { role: 'row' }), moves: svg('g'), card: svg('g', { role: 'rowheader', 'data-kind': 'node', 'data-node': node.name, tabindex: '-1' }), cells: new Map() };
      row.element.append(svg('rect', { class: 'stripe' }), row.moves, row.card);
      this.rows.set(node.name, row);
      this.rowLayer.append(row.element);
    }
    const y = m.head + i * m.row - m.top;
    if (row.y !== y) row.element.setAttribute('transform', `translate(0,${row.y = y})`);
    if (row.left !== m.left) row.moves.setAttribute('transform', `translate(${-(row.left = m.left)},0)`);
    const range = this.columnsInSight.join();
    if (this.fresh || row.range !== range || row.index !== i) {
      row.range = range;
      row.index = i;
      row.element.setAttribute('aria-rowindex', i + 2);
      this.drawCard(row, node, m);
      this.drawCells(row, node, m);
    }
    return row;
  }

  drawCard(row, node, m) {
    const verdict = weight(node.trouble) > weight(verdictOf(node.state)) ? node.trouble : verdictOf(node.state);
    const selected = this.selected === `node/${node.name}`;
    const text = JSON.stringify([node.state, verdict, node.vtep, node.role, node.endpoints, selected, m.width]);
    if (row.text === text) return;
    row.text = text;
    const said = `node ${node.name}: ${node.state === 'local' ? 'seen from here' : node.state}, ${count(node.endpoints, 'endpoint')}`;
    const tall = m.row >= 44;
    const middle = m.row / 2;
    const state = stateWord(node.state);
    row.element.firstChild.setAttribute('width', m.width);
    row.element.firstChild.setAttribute('height', m.row);
    row.card.setAttribute('class', `card ${verdict}${selected ? ' selected' : ''}`);
    row.card.setAttribute('aria-label', said);
    row.card.setAttribute('aria-colindex', '1');
    row.card.replaceChildren(
      svg('title', null, said),
      svg('rect', { class: 'pane', width: m.gutter, height: m.row }),
      svg('rect', { class: 'hit box', x: 6, y: tall ? 5 : 2.5, width: m.gutter - 14, height: m.row - (tall ? 10 : 5), rx: 7 }),
      mark(verdict, 22, middle, 14),
      svg('text', { class: 'name', x: 36, y: tall ? middle - 3 : middle + 4.5 }, cut(node.name, tall || state === 'ok' ? m.gutter - 54 : m.gutter - 62 - 6.4 * state.length)),
      tall
        ? svg('text', { class: 'small', x: 36, y: middle + 13 }, this.second(node, state, m))
        : svg('text', { class: 'small', x: m.gutter - 16, y: middle + 4, 'text-anchor': 'end' }, state === 'ok' ? '' : state));
  }

  /** The second line of a card: as much as there is room for. */
  second(node, state, m) {
    const more = state === 'ok' ? node.role : state;
    if (m.gutter === NARROW) return state === 'ok' ? node.vtep ?? '' : state;
    return cut([node.vtep, more].filter(Boolean).join(' · '), m.gutter - 50, 6.2);
  }

  drawCells(row, node, m) {
    const [from, to] = this.columnsInSight;
    const wanted = new Set();
    for (let i = from; i < to; i++) if (this.networks[i].at.has(node.name)) wanted.add(this.networks[i].name);
    this.prune(row.cells, wanted);
    let last = -1;
    this.networks.forEach((n, i) => { if (n.at.has(node.name)) last = i; });
    row.line ??= row.moves.appendChild(svg('path'));
    const line = last < 0 ? '' : `M${m.gutter - 8} ${m.row / 2}H${this.x(last)}`;
    if (row.d !== line) row.line.setAttribute('d', row.d = line);
    row.line.setAttribute('class', `wire ${verdictOf(node.state)}`);
    for (let i = from; i < to; i++) {
      const n = this.networks[i];
      if (n.at.has(node.name)) this.drawCell(row, node, n, i, m);
    }
  }

  drawCell(row, node, n, i, m) {
    const peer = n.at.get(node.name);
    const here = node.name === this.self;
    const verdict = peer.problem || (here && n.verdict === 'failed') ? 'failed' : verdictOf(peer.state);
    const text = JSON.stringify([i, verdict, peer.endpoints, peer.problem]);
    let cell = row.cells.get(n.name);
    if (!cell) {
      cell = { element: svg('g', { role: 'gridcell', 'data-kind': 'cell', 'data-node': node.name, 'data-network': n.name, tabindex: '-1' }) };
      row.cells.set(n.name, cell);
      row.moves.append(cell.element);
    }
    if (cell.text === text) return;
    cell.text = text;
    const said = `${node.name} in ${n.name}: ${count(peer.endpoints, 'endpoint')}, ${peer.problem || (here ? 'this node' : peer.state)}`;
    const r = clamp(Math.min(m.row, m.column) / 2 - 5, 9, 16);
    const number = brief(peer.endpoints);
    const half = Math.max(r, 3.9 * number.length + 4);
    const [x, y] = [this.x(i), m.row / 2];
    const g = cell.element;
    g.setAttribute('aria-label', said);
    g.setAttribute('aria-colindex', i + 2);
    g.setAttribute('class', `cell ${verdict}${peer.endpoints ? '' : ' empty'}`);
    g.replaceChildren(
      svg('title', null, said),
      svg('rect', { class: 'dot', x: x - half, y: y - r, width: 2 * half, height: 2 * r, rx: verdict === 'failed' ? 4 : r }),
      svg('text', { class: 'count', x, y: y + 4, 'text-anchor': 'middle' }, number));
    if (verdict !== 'healthy') g.append(mark(verdict, x + half, y - r + 2, 12));
  }

  // The keyboard: one element of the drawing is a tab stop, arrow keys move among what exists.

  find({ node, network }) {
    if (node === null) return this.heads.get(network)?.element;
    const row = this.rows.get(node);
    return network === null ? row?.card : row?.cells.get(network)?.element;
  }

  tabStop() {
    let stop = this.find(this.active);
    if (!stop) {
      const n = this.networks[Math.min(this.columnsInSight[0], this.networks.length - 1)];
      stop = (n && this.heads.get(n.name)?.element) ?? this.rows.get(this.nodes[this.rowsInSight[0]]?.name)?.card;
    }
    if (this.stop === stop) return;
    this.stop?.setAttribute('tabindex', '-1');
    stop?.setAttribute('tabindex', '0');
    this.stop = stop;
  }

  focused(element) {
    if (!element) return;
    this.active = { node: element.dataset.node ?? null, network: element.dataset.network ?? null };
    this.tabStop();
  }

  choose(element) {
    if (!element) return;
    const { kind, node, network } = element.dataset;
    this.active = { node: node ?? null, network: network ?? null };
    if (kind === 'node') this.open('node', node);
    else this.open('network', network, kind === 'cell' ? node : '');
  }

  key(event) {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (event.key === 'Enter' || event.key === ' ') this.choose(event.target.closest('[data-kind]'));
    else if (event.key === 'Home') this.go({ ...this.active, network: this.active.node === null ? this.networks[0]?.name : null });
    else if (event.key === 'End') this.go(this.furthest());
    else if (step) this.go(this.neighbour(...step));
    else return;
    event.preventDefault();
  }

  exists({ node, network }) {
    if (node === null || network === null) return node !== network;
    return this.networks.find((n) => n.name === network).at.has(node);
  }

  furthest() {
    const { node } = this.active;
    const last = this.networks.findLast((n) => node === null || n.at.has(node));
    return { node, network: last?.name ?? null };
  }

  /** The next thing that exists in a direction. */
  neighbour(down, right) {
    let row = this.active.node === null ? -1 : this.nodes.findIndex((n) => n.name === this.active.node);
    let column = this.active.network === null ? -1 : this.networks.findIndex((n) => n.name === this.active.network);
    for (;;) {
      row += down;
      column += right;
      if (row < -1 || column < -1 || row >= this.nodes.length || column >= this.networks.length) return this.active;
      const next = { node: row < 0 ? null : this.nodes[row].name, network: column < 0 ? null : this.networks[column].name };
      if (this.exists(next)) return next;
    }
  }

  /** Scrolls to something and gives it the focus. */
  go(to) {
    const m = this.size;
    const row = this.nodes.findIndex((n) => n.name === to.node);
    const column = this.networks.findIndex((n) => n.name === to.network);
    if (row >= 0) this.place.scrollTop = clamp(this.place.scrollTop, (row + 1) * m.row - (m.height - m.head), row * m.row);
    if (column >= 0) this.place.scrollLeft = clamp(this.place.scrollLeft, (column + 1) * m.column + m.gutter - m.width, column * m.column);
    this.active = to;
    this.draw();
    this.find(to)?.focus({ preventScroll: true });
  }
}
