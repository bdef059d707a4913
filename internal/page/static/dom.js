// Elements, and how figures are written. Names come from strangers: text goes into the page as text, never as markup.

const SVG = 'http://www.w3.org/2000/svg';

/** Gives an element attributes (on… adds a listener, null leaves out) and children (nodes or text; null is left out). */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined));
  return element;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** The icon of a verdict. */
export const icon = (verdict) =>
  svg('svg', { class: `icon ${verdict}`, 'aria-hidden': 'true' }, svg('use', { href: `#i-${verdict}` }));

/** A verdict or state with its icon: the word is always there. */
export const badge = (verdict, word = verdict) => el('span', { class: `badge ${verdict}` }, icon(verdict), word);

/** A node's state as the page calls it. */
export const stateWord = (state) => (state === 'local' ? 'this node' : state);

/** The verdict that a node's state amounts to. */
export function verdictOf(state) {
  switch (state) {
    case 'local': case 'ok': return 'healthy';
    case 'behind': return 'degraded';
    case 'DOWN': return 'failed';
    default: return 'unknown';
  }
}

/** Verdicts by weight, as the command weighs them: what is known to be broken before what is not known. */
const weights = { healthy: 0, degraded: 1, unknown: 2, failed: 3 };
export const weight = (verdict) => weights[verdict] ?? 2;
export const worst = (verdicts) => verdicts.reduce((a, b) => (weight(b) > weight(a) ? b : a), 'healthy');

/** A sentence of the daemon's, with what it puts between backquotes as code. */
export const prose = (text) => String(text).split('`').map((part, i) => (i % 2 ? el('code', null, part) : part));

/** 3 nodes, 1 node. */
export const count = (n, noun) => `${n.toLocaleString('en')} ${noun}${n === 1 ? '' : 's'}`;

/** A number in little room: 999, 1.2k, 12k. */
export const brief = (n) => (n < 1000 ? String(n) : n < 10000 ? `${(n / 1000).toFixed(1)}k` : `${Math.round(n / 1000)}k`);

/** Bits per second. */
export function rate(bits) {
  if (bits === undefined || bits === null) return '–';
  const units = ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s', 'Tbit/s'];
  let i = 0;
  for (; bits >= 999.5 && i < units.length - 1; i++) bits /= 1000;
  return `${bits >= 99.95 || i === 0 ? Math.round(bits) : bits.toFixed(1)} ${units[i]}`;
}

/** How long something took or is ago, of milliseconds. */
export function span(ms) {
  const s = Math.max(0, ms / 1000);
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

/** How long ago a time was, by this browser's clock. */
export const ago = (time) => (time ? `${span(Date.now() - Date.parse(time))} ago` : '–');

/** What a page's address says is open. */
export const route = (kind, name) => `#/${kind}/${encodeURIComponent(name)}`;

/** A link to a network or a node, inside of the page. */
export const link = (kind, name) => el('a', { href: route(kind, name), 'data-key': `${kind}/${name}` }, name);

/** Text as a person looks for it. */
export const folded = (text) => String(text ?? '').toLowerCase();
