// A table of any length: only the rows in sight are in the page.
import { el, count } from './dom.js';

const ROW = 32; // pixels, as in style.css
const SPARE = 6; // rows above and below those in sight

/**
 * columns: [{ title, least and grow (width in rem, share of what is left), cell(row) → node or text, order(row) → number or text,
 * number: true }]
 * key(row) names a row as long as it exists.
 */
export class Table {
  constructor(place, { label, columns, key, rows = 12, noun = 'row' }) {
    this.columns = columns = columns.map((c) => ({ least: 5, grow: c.least ? 0 : 1, ...c }));
    this.key = key;
    this.noun = noun;
    this.sorted = { column: null, down: false };
    this.shown = new Map(); // key → { element, index, text }
    this.all = [];
    this.rows = [];
    this.news = 0; // counts what was set: a row is written once for each
    this.template = columns.map((c) => (c.grow === 0 ? `${c.least}rem` : `minmax(${c.least}rem, ${c.grow}fr)`)).join(' ');
    this.body = el('div', { class: 'rows', role: 'rowgroup' });
    this.head = el('div', { class: 'row head', role: 'row', 'aria-rowindex': '1' }, columns.map((c) => this.title(c)));
    this.head.style.gridTemplateColumns = this.template;
    this.grid = el('div', { class: 'grid', role: 'table', 'aria-label': label, 'aria-colcount': columns.length },
      el('div', { role: 'rowgroup', class: 'heads' }, this.head), this.body);
    this.scroll = el('div', { class: 'table', tabindex: '0', role: 'group', 'aria-label': `${label}, scrolls` }, this.grid);
    this.grid.style.minWidth = `${columns.reduce((sum, c) => sum + c.least + 0.6, 0.6)}rem`;
    this.scroll.style.maxHeight = `${(rows + 1) * ROW + 2}px`;
    this.scroll.addEventListener('scroll', () => this.later(), { passive: true });
    this.observer = new ResizeObserver(() => this.later());
    this.observer.observe(this.scroll);
    place.append(this.scroll);
  }

  title(column) {
    if (!column.order) return el('span', { role: 'columnheader', class: column.number ? 'number' : null }, column.title);
    return el('span', { role: 'columnheader', class: column.number ? 'number' : null, 'aria-sort': 'none' },
      el('button', { type: 'button', onclick: () => this.sort(column) }, column.title, el('span', { class: 'arrow', 'aria-hidden': 'true' })));
  }

  /** Sorts by a column, the other way round the second time. */
  sort(column) {
    this.sorted = { column, down: this.sorted.column === column && !this.sorted.down };
    this.columns.forEach((c, i) => {
      if (c.order) this.head.children[i].setAttribute('aria-sort', c !== column ? 'none' : this.sorted.down ? 'descending' : 'ascending');
    });
    this.arrange();
  }

  /** Shows these rows. */
  set(rows) {
    this.all = rows;
    this.news++;
    this.arrange();
  }

  arrange() {
    const { column, down } = this.sorted;
    this.rows = this.all;
    if (column) {
      const keyed = this.all.map((row) => [column.order(row), row]);
      const compare = (a, b) => (typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true }));
      keyed.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
      this.rows = keyed.map(([, row]) => row);
    }
    this.grid.setAttribute('aria-rowcount', this.rows.length + 1);
    this.body.style.height = `${Math.max(1, this.rows.length) * ROW}px`;
    this.body.dataset.empty = this.rows.length ? '' : `no ${this.noun}`;
    this.later();
  }

  /** Draws at the next frame, however often it is called before. */
  later() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  draw() {
    const from = Math.max(0, Math.floor(this.scroll.scrollTop / ROW) - SPARE);
    const to = Math.min(this.rows.length, from + Math.ceil(this.scroll.clientHeight / ROW) + 2 * SPARE);
    const wanted = new Set();
    for (let i = from; i < to; i++) wanted.add(this.key(this.rows[i]));
    for (const [key, row] of this.shown) {
      if (wanted.has(key)) continue;
      row.element.remove();
      this.shown.delete(key);
    }
    let before = null; // the page has the rows in their order, which is the keyboard's, too
    for (let i = from; i < to; i++) {
      const { element } = this.show(this.rows[i], i);
      const place = before ? before.nextSibling : this.body.firstChild;
      if (place !== element) this.body.insertBefore(element, place);
      before = element;
    }
  }

  show(data, index) {
    const key = this.key(data);
    let row = this.shown.get(key);
    if (!row) {
      row = { element: el('div', { class: 'row', role: 'row' }), cells: [], text: [] };
      row.element.style.gridTemplateColumns = this.template;
      row.cells = this.columns.map((c) => el('span', { role: 'cell', class: c.number ? 'number' : null }));
      row.element.append(...row.cells);
      this.shown.set(key, row);
    }
    if (row.index !== index) {
      row.index = index;
      row.element.style.transform = `translateY(${index * ROW}px)`;
      row.element.setAttribute('aria-rowindex', index + 2);
    }
    if (row.news === this.news) return row;
    row.news = this.news;
    this.columns.forEach((c, i) => {
      const content = c.cell(data);
      const text = typeof content === 'string' ? content : content.outerHTML;
      if (row.text[i] === text) return;
      row.text[i] = text;
      row.cells[i].replaceChildren(content);
      row.cells[i].title = row.cells[i].textContent;
    });
    return row;
  }

  /** How many rows there are, in words. */
  get length() { return count(this.rows.length, this.noun); }

  close() {
    this.observer.disconnect();
    if (this.frame !== undefined) cancelAnimationFrame(this.frame);
  }
}
