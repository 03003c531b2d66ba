'use strict';
(() => {
  const root = document.documentElement;
  root.classList.add('script');
  const data = JSON.parse(document.getElementById('data').textContent);
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const NATS_PER_BIT = Math.LN2;
  const INFINITE = -1;
  const state = { metric: one('#metric option').value, scale: 'fixed', unit: 'nats' };

  /**
   * Where a metric's values stand, its palette and edges, whether those of tokens add up, and in
   * which power of nats they are, if not the first.
   */
  const METRICS = {
    loss: { from: 'l', kind: 's', edges: 'loss', adds: true },
    difference: { from: 'd', kind: 'd', edges: 'difference', adds: true },
    kl: { from: 'kl', kind: 's', edges: 'kl', adds: true },
    cross: { from: 'ce', kind: 's', edges: 'loss', adds: true },
    gold_entropy: { from: 'te', kind: 's', edges: 'loss' },
    gold_loss: { from: 'tl', kind: 's', edges: 'loss', adds: true },
    gap: { from: 'gap', kind: 'd', edges: 'difference', adds: true },
    abs_delta: { from: 'l', kind: 's', edges: 'kl', adds: true },
    delta: { from: 'dl', kind: 'd', edges: 'difference', adds: true },
  };
  for (const { name, key, whole, power } of data.columns) {
    METRICS[name] = { from: key, kind: whole ? 'r' : 's', edges: whole ? 'rank' : 'loss', power };
  }
  const powerOf = (metric) => METRICS[metric].power ?? 1;
  const unitOf = (power) => state.unit + ['', '', '²'][power];
  const inUnit = (value, power) => (state.unit === 'bits' ? value / NATS_PER_BIT ** power : value);
  const isSigned = (metric) => METRICS[metric].kind === 'd';

  // -- what stands in the spans ------------------------------------------------------------------

  const panes = all('.pane').map((element) => {
    const own = data.panes[Number(element.dataset.p)];
    for (const [n, text] of Object.entries(own.x || {})) element.children[n].textContent = text;
    return { element, own, spans: [...element.children], more: null, places: null };
  });
  for (const pane of panes) {
    const beside = one('.pane.difference', pane.element.closest('.panes'));
    pane.beside = beside && data.panes[Number(beside.dataset.p)];
  }
  const paneOf = new Map(panes.map((pane) => [pane.element, pane]));

  function tokensOf(pane, n) {
    const firsts = pane.own.n;
    if (!firsts) return [n, n + 1];
    return [firsts[n], n + 1 < firsts.length ? firsts[n + 1] : pane.own.l.length];
  }

  /** Losses of a span's tokens add up; of ranks and entropies the highest is shown. */
  function valueOf(pane, n, metric) {
    const own = pane.own;
    if (own.d) return own.d[n];
    if (metric === 'difference') return pane.beside ? pane.beside.d[own.g ? own.g[n] : n] : null;
    const values = own[METRICS[metric].from];
    if (!values) return null;
    const [first, last] = tokensOf(pane, n);
    let found = null;
    for (let t = first; t < last; t += 1) {
      let value = values[t];
      if (value === null || value === undefined) continue;
      if (metric !== 'gap' && value === INFINITE) value = Infinity;
      if (found === null) found = value;
      else found = METRICS[metric].adds ? found + value : Math.max(found, value);
    }
    return found;
  }

  const stepOf = (value, edges) => {
    let step = 0;
    while (step < edges.length && value >= edges[step]) step += 1;
    return step;
  };

  // -- colours -----------------------------------------------------------------------------------

  const metricOf = (pane) => (pane.own.d ? 'difference' : state.metric);

  /**
   * Edges between equal shares of this page's values, each once; of differences as many on either
   * side, by those that are none 0. What many tokens share is no edge above itself.
   */
  function ownEdges(metric) {
    const found = [];
    for (const pane of panes) {
      if (metricOf(pane) !== metric) continue;
      for (let n = 0; n < pane.spans.length; n += 1) {
        const value = valueOf(pane, n, metric);
        if (isSigned(metric) ? value : value !== null && Number.isFinite(value)) found.push(Math.abs(value));
      }
    }
    if (!found.length) return fixedEdges(metric);
    found.sort((a, b) => a - b);
    const at = (share) => found[Math.min(found.length - 1, Math.floor(share * found.length))];
    if (!isSigned(metric)) {
      const n = fixedEdges(metric).length;
      const edges = Array.from({ length: n }, (_, i) => at((i + 1) / (n + 1)));
      return [...new Set(edges)].filter((edge) => edge > found[0]);
    }
    const sides = [0.5, 0.8, 0.92, 0.98].map(at);
    const justAbove = (x) => -x * (1 - 1e-9); // so that -x is as far out as x is
    return [...sides.map(justAbove).reverse(), ...sides];
  }

  const fixedEdges = (metric) => data.edges[METRICS[metric].edges];

  function edgesOf(metric) {
    return state.scale === 'own' ? ownEdges(metric) : fixedEdges(metric);
  }

  function paint() {
    const edges = {};
    for (const pane of panes) {
      const metric = metricOf(pane);
      edges[metric] = edges[metric] || edgesOf(metric);
      if (pane.more === null) {
        pane.more = pane.spans.map((span) => span.className.replace(/^(?:[sd]\d|u)\b ?/, ''));
      }
      const { kind } = METRICS[metric];
      for (let n = 0; n < pane.spans.length; n += 1) {
        const value = valueOf(pane, n, metric);
        const step = value === null ? 'u' : kind + stepOf(value, edges[metric]);
        const name = pane.more[n] ? `${step} ${pane.more[n]}` : step;
        if (pane.spans[n].className !== name) pane.spans[n].className = name;
      }
    }
    showLegend();
  }

  function showLegend() {
    if (!one('#legend')) return;
    const differences = one('#legend-difference');
    const of = differences && state.metric === 'difference' ? 'loss' : state.metric;
    one('#legend').replaceChildren(...legendOf(of));
    const unit = of === 'rank' ? '1 is the favourite' : unitOf(powerOf(of));
    const said = one(`#metric option[value="${of}"]`).textContent;
    one('#legend-title').textContent = `${said}, ${unit}`;
    if (!differences) return;
    differences.replaceChildren(...legendOf('difference'));
    one('#legend-difference-title').textContent = `B − A, ${state.unit}: below 0 B is better`;
  }

  function legendOf(metric) {
    const edges = edgesOf(metric);
    const isRank = metric === 'rank';
    const power = powerOf(metric);
    const short = (x) => Number(inUnit(x, power).toPrecision(2)).toString().replace('-', '−').replace('0.', isSigned(metric) ? '.' : '0.');
    return [0, ...edges].map((edge, n) => {
      const item = document.createElement('li');
      const key = document.createElement('span');
      key.className = `key ${METRICS[metric].kind}${n}`;
      let said = short(edge);
      if (isRank) said = String(n ? edge : 1);
      if (isSigned(metric) && n === 0) said = '<';
      item.append(key, n === edges.length && !isSigned(metric) ? `${said}+` : said);
      return item;
    });
  }

  // -- figures -----------------------------------------------------------------------------------

  /** So many digits that count; powers of ten where a figure is tiny or huge. */
  function inDigits(value, n) {
    const round = Number(value.toPrecision(n));
    const size = Math.abs(round);
    const huge = () => round.toExponential(n - 1);
    const text = size >= 1e9 ? huge() : size < 1e-4 ? round.toExponential() : String(round);
    // Two digits of a power, as in the figures that the page came with.
    return text.replace(/e([+-])(\d)$/, 'e$10$2').replace(/-/g, '−');
  }

  function shown(value, digits = 4) {
    if (value === null || value === undefined) return '–';
    if (!Number.isFinite(value)) return value < 0 ? '−∞' : '∞';
    const size = Math.abs(value);
    if (value !== 0 && size < 10 ** -digits) return inDigits(value, 4);
    if (size >= 1e9) return inDigits(value, 7);
    // A large figure has seven digits in all, as in the figures that the page came with.
    if (size >= 1) digits = Math.max(0, Math.min(digits, 7 - String(Math.trunc(size)).length));
    return value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace('-', '−');
  }

  /** What stands in nats, with as many digits, in bits. */
  function toBits(nats, value) {
    const bits = value / NATS_PER_BIT;
    return nats.includes('e−') ? inDigits(bits, 4) : shown(bits, (nats.split('.')[1] || '').length);
  }

  function showUnit() {
    root.dataset.unit = state.unit;
    for (const element of all('data.l')) {
      if (element.dataset.nats === undefined) element.dataset.nats = element.textContent;
      const nats = element.dataset.nats;
      element.textContent = state.unit === 'bits' ? toBits(nats, Number(element.value)) : nats;
    }
    showLegend();
    if (current) tell(current.pane, current.n);
  }

  // -- the token under the pointer or with the focus ----------------------------------------------

  const details = one('#details');
  let current = null;

  function make(name, content, className) {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.append(content);
    return element;
  }

  const NAMED = { ' ': '·', '\n': '↵', '\r': '␍', '\t': '→' };
  const visible = (text) => [...text].map((char) => NAMED[char]
    || (/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(char) ? `⟨U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}⟩` : char)).join('');

  const probability = (loss) => {
    const value = Math.exp(-loss);
    return value >= 0.001 || value === 0 ? value.toFixed(4) : value.toExponential(2).replace('-', '−');
  };

  const inBoth = (nats) => [`${shown(nats)} nats`, `${shown(nats / NATS_PER_BIT)} bits`];

  const signed = (x) => (x > 0 ? `+${shown(x)}` : shown(x));
  /** A sentence that says which way a difference points. */
  const wayOf = (x, who, other) => (x === 0 ? `${who} is ${other}.` : `${who} is ${x < 0 ? 'lower' : 'higher'} than ${other}.`);

  const closer = make('button', '×', 'close');
  closer.type = 'button';
  closer.setAttribute('aria-label', 'Close');
  closer.addEventListener('click', hide);

  function entries(list, pairs) {
    for (const [name, value] of pairs) {
      if (value === null || value === undefined) continue;
      list.append(make('dt', name), make('dd', String(value)));
    }
    return list;
  }

  function tell(pane, n) {
    current = { pane, n };
    details.hidden = false;
    const span = pane.spans[n];
    const title = make('h3', make('span', make('bdi', visible(span.textContent) || span.dataset.m || '∅'), span.className.split(' ')[0]));
    details.replaceChildren(closer, title, ...(pane.own.d ? ofDifference(pane, n) : ofTokens(pane, n)));
  }

  function hide() {
    details.hidden = true;
    current = null;
  }

  function ofDifference(pane, n) {
    const list = document.createElement('dl');
    const own = pane.own;
    const loss = (x) => (x === null ? 'not scored' : inBoth(x === INFINITE ? Infinity : x)[state.unit === 'bits' ? 1 : 0]);
    entries(list, [['loss of A', loss(own.l[n])], ['loss of B', loss(own.b[n])]]);
    const difference = own.d[n];
    if (difference === null) return [list];
    entries(list, [['B − A', `${signed(difference)} nats`], ['in bits', `${signed(difference / NATS_PER_BIT)} bits`]]);
    return [list, make('p', wayOf(difference, 'B’s loss', 'A’s'))];
  }

  function ofTokens(pane, n) {
    const [first, last] = tokensOf(pane, n);
    const parts = [];
    if (last - first > 1) {
      const value = valueOf(pane, n, pane.own.kl ? 'kl' : 'loss');
      const said = value === null ? '' : ` Their ${pane.own.kl ? 'divergences' : 'losses'} add up to ${inBoth(value).join(', ')}, which colours them; of ranks and entropies the highest does.`;
      parts.push(make('p', `${last - first} tokens that share a character.${said}`));
    }
    for (let t = first; t < last; t += 1) parts.push(...ofToken(pane.own, t, last - first > 1));
    return parts;
  }

  function ofToken(own, t, several) {
    const list = document.createElement('dl');
    let loss = own.l[t];
    if (loss === INFINITE) loss = Infinity;
    if (several) entries(list, [['token', visible(data.names[own.t[t]])]]);
    if (own.kl) return ofDivergence(list, own, t);
    if (own.dl) return ofRecorded(list, own, t);
    if (own.w !== undefined) return ofWhole(list, own);
    entries(list, [['position', t], ['id', own.i && own.i[t]]]);
    if (loss === null) entries(list, [['loss', 'not scored']]);
    else entries(list, [['loss', inBoth(loss)[0]], ['in bits', inBoth(loss)[1]], ['probability', probability(loss)]]);
    if (own.k && loss !== null) entries(list, [['counts', own.k[t] ? 'yes' : 'no']]);
    for (const { name, key, whole, power } of data.columns) {
      const value = own[key] ? own[key][t] : null;
      if (value === null) continue;
      const said = whole ? value.toLocaleString('en') : `${shown(inUnit(value, power))} ${unitOf(power)}`;
      entries(list, [[name, said]]);
    }
    if (own.c && own.c[t] !== null) entries(list, [['context', `${own.c[t]} tokens`]]);
    const parts = [list];
    if (own.a && own.a[t]) parts.push(alternatives(own, t));
    return parts;
  }

  /** Of a choice without tokens: its mean loss is all that is known. */
  function ofWhole(list, own) {
    const loss = own.l[0] === INFINITE ? Infinity : own.l[0];
    const said = loss === null ? ['not scored'] : inBoth(loss);
    return [entries(list, [['mean loss per token', said[0]], ['in bits', said[1]], ['tokens', own.w]])];
  }

  /** Where gold is known in part, its divergence lies between two figures. */
  function ofDivergence(list, own, t) {
    entries(list, [['position', t], ['id', own.i && own.i[t]]]);
    if (own.kl[t] === null) return [entries(list, [['KL', 'not scored']])];
    const said = (x) => inBoth(x === INFINITE ? Infinity : x)[state.unit === 'bits' ? 1 : 0];
    const chance = (x) => Math.exp(-(x === INFINITE ? Infinity : x));
    const least = own.km ? ' at least' : '';
    entries(list, [[`KL${least}`, said(own.kl[t])], ['KL at most', own.km && said(own.km[t])],
      [`cross-entropy${least}`, said(own.ce[t])], ['gold entropy', said(own.te[t])],
      ['model’s loss', said(own.l[t])], ['gold’s loss', said(own.tl[t])],
      ['p(model)', shown(chance(own.l[t]))], ['p(gold)', shown(chance(own.tl[t]))],
      ['Δp', signed(chance(own.l[t]) - chance(own.tl[t]))],
      ['same favourite', own.same[t] ? 'yes' : 'no']]);
    if (own.k) entries(list, [['counts', own.k[t] ? 'yes' : 'no']]);
    const difference = chance(own.l[t]) - chance(own.tl[t]);
    return [list, make('p', wayOf(difference, 'The model’s probability of it', 'gold’s'))];
  }

  /** A recorded log-probability beside the one that was scored. */
  function ofRecorded(list, own, t) {
    const said = (x) => (x === null ? 'none' : `${signed(inUnit(x, 1))} ${state.unit}`);
    entries(list, [['position', t], ['id', own.i && own.i[t]], ['scored ln p', said(own.sc[t])],
      ['recorded', said(own.re[t])], ['Δ', said(own.dl[t])]]);
    return [list];
  }

  function alternatives(own, t) {
    const table = document.createElement('table');
    table.append(make('caption', 'The model’s favourites here'));
    const found = own.a[t];
    for (let i = 0; i < found.length; i += 2) {
      const chance = found[i + 1] === null ? 0 : Math.exp(found[i + 1]);
      const row = document.createElement('tr');
      if (i / 2 === own.h[t]) row.className = 'is-it';
      const meter = make('span', document.createElement('span'), 'meter');
      meter.firstChild.style.width = `${100 * chance}%`;
      row.append(make('td', make('bdi', visible(data.names[found[i]]))), make('td', meter, 'num'), make('td', chance.toFixed(4), 'num'));
      table.append(row);
    }
    return table;
  }

  function spanAt(target) {
    const span = target instanceof Element ? target.closest('.pane > span') : null;
    if (!span) return null;
    const pane = paneOf.get(span.parentElement);
    if (!pane.places) pane.places = new Map(pane.spans.map((each, n) => [each, n]));
    return { pane, n: pane.places.get(span) };
  }

  let focused = null;
  let pointer = '';
  document.addEventListener('pointerover', (event) => {
    const place = `${event.screenX} ${event.screenY}`;
    if (place === pointer) return; // the page moved below it, by keys
    pointer = place;
    const found = spanAt(event.target);
    if (found) tell(found.pane, found.n);
    else if (focused && current && event.target instanceof Element && event.target.closest('.pane')) tell(focused.pane, focused.n);
  });
  document.addEventListener('focusin', (event) => {
    focused = spanAt(event.target);
    if (!focused) return;
    tell(focused.pane, focused.n);
    rove(focused.pane, focused.n);
  });

  // -- keys: Tab goes from region to region, arrows within it: from token to token, row to row ------

  const isShown = (element) => !element.closest('[hidden]')
    && getComputedStyle(element.closest('.pane-box') || element).display !== 'none';
  const walked = panes.filter((pane) => pane.spans.length);
  const firstOf = (pane) => Math.max(0, pane.spans.findIndex((span) => !span.className.startsWith('u')));
  let stop = null;

  /** Of all texts Tab reaches this one token. */
  function rove(pane, n) {
    if (stop) stop.tabIndex = -1;
    stop = pane.spans[n];
    stop.tabIndex = 0;
    return stop;
  }

  /** The text that is shown before or after this one. */
  function neighbour(pane, sign) {
    let at = walked.indexOf(pane) + sign;
    while (walked[at] && !isShown(walked[at].element)) at += sign;
    return walked[at];
  }

  /** Where a list of links or buttons is walked by two keys, Tab reaches one of them. */
  function walk(within, selector, [back, on]) {
    const shownOnes = () => all(selector, within).filter(isShown);
    const reach = (item) => {
      for (const each of all(`${selector}[tabindex="0"]`, within)) each.tabIndex = -1;
      if (item) item.tabIndex = 0;
    };
    for (const each of all(selector, within)) each.tabIndex = -1;
    const region = within.closest('[role=region]');
    if (region && one(selector, within)) region.removeAttribute('tabindex');
    within.addEventListener('focusin', (event) => {
      if (event.target.matches(selector)) reach(event.target);
    });
    within.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !event.target.matches(selector)) return;
      const items = shownOnes();
      const at = items.indexOf(event.target);
      const goal = items[{ [back]: at - 1, [on]: at + 1, Home: 0, End: items.length - 1 }[event.key]];
      if (!goal) return;
      event.preventDefault();
      goal.focus();
    });
    const refresh = () => {
      const own = one(`${selector}[tabindex="0"]`, within);
      if (!own || !isShown(own)) reach(shownOnes()[0]);
    };
    refresh();
    return refresh;
  }

  const refreshers = [
    ...all('.places tbody, #sequences tbody').map((body) => walk(body, 'td a', ['ArrowUp', 'ArrowDown'])),
    () => {
      const found = stop && isShown(stop.parentElement) ? null : walked.find((pane) => isShown(pane.element));
      if (found) rove(found, firstOf(found));
    },
  ];
  const refreshStops = () => refreshers.forEach((refresh) => refresh());
  refreshStops();

  /** The token of the next line up or down that lies nearest. */
  function beside(pane, n, sign) {
    const from = pane.spans[n].getClientRects()[0];
    if (!from) return n;
    let best = sign > 0 ? pane.spans.length : -1;
    let nearest = Infinity;
    let line = null;
    for (let i = n + sign; i >= 0 && i < pane.spans.length; i += sign) {
      const box = pane.spans[i].getClientRects()[0];
      if (!box || Math.abs(box.top - from.top) < 4) continue;
      if (line === null) line = box.top;
      if (Math.abs(box.top - line) > 4) break;
      const distance = Math.abs(box.left - from.left);
      if (distance < nearest) [best, nearest] = [i, distance];
    }
    return best;
  }

  /** A token of a text; before its first and after its last one lie the texts beside it. */
  function goTo(pane, n, toFirst) {
    if (n >= 0 && n < pane.spans.length) return rove(pane, n);
    const other = neighbour(pane, n < 0 ? -1 : 1);
    if (!other) return rove(pane, n < 0 ? 0 : pane.spans.length - 1);
    return rove(other, n > 0 || toFirst ? firstOf(other) : other.spans.length - 1);
  }

  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') { hide(); return; }
    const found = spanAt(event.target);
    if (!found || event.ctrlKey || event.metaKey || event.altKey) return;
    const { pane, n } = found;
    const last = pane.spans.length - 1;
    const goal = {
      ArrowRight: () => n + 1,
      ArrowLeft: () => n - 1,
      ArrowDown: () => beside(pane, n, 1),
      ArrowUp: () => beside(pane, n, -1),
      Home: () => 0,
      End: () => last,
      PageDown: () => last + 1,
      PageUp: () => -1,
    }[event.key];
    if (!goal) return;
    event.preventDefault();
    const span = goTo(pane, goal(), event.key === 'PageUp');
    span.focus({ preventScroll: true });
    span.scrollIntoView({ block: 'nearest', behavior: 'instant' });
  });

  document.addEventListener('click', (event) => {
    if (!(event.target instanceof Element)) return;
    const link = event.target.closest('a[href^="#"]');
    if (link) return follow(link, event);
    const found = spanAt(event.target);
    if (found && getSelection().isCollapsed) rove(found.pane, found.n).focus({ preventScroll: true });
    return undefined;
  });

  function follow(link, event) {
    const goal = document.getElementById(link.hash.slice(1));
    if (!goal) return;
    const sequence = goal.closest('.sequence');
    if (sequence) sequence.hidden = false;
    const found = spanAt(goal);
    if (!found) return;
    event.preventDefault();
    rove(found.pane, found.n).focus({ preventScroll: true });
    goal.scrollIntoView({ block: 'center', behavior: 'instant' });
  }

  /** Browsers drop a last line end from what is copied; this is the text to the last character. */
  document.addEventListener('copy', (event) => {
    const selection = getSelection();
    if (selection.isCollapsed || selection.rangeCount !== 1 || !event.clipboardData) return;
    const range = selection.getRangeAt(0);
    const common = range.commonAncestorContainer;
    const around = common instanceof Element ? common : common.parentElement;
    if (!around.closest('.pane')) return;
    event.clipboardData.setData('text/plain', range.cloneContents().textContent);
    event.preventDefault();
  });

  // -- the tables: sort and search -----------------------------------------------------------------

  function keyOf(cell) {
    const figure = one('data', cell);
    if (figure) return Number(figure.value);
    const text = cell.textContent.trim();
    if (text === '–') return null;
    const number = Number(text.replace(/,/g, ''));
    return cell.classList.contains('num') && !Number.isNaN(number) ? number : text;
  }

  const order = new Intl.Collator('en', { numeric: true });

  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === 'number' && typeof b === 'number' ? a - b : order.compare(String(a), String(b)));
  }

  function sort(table, column, header) {
    const rising = header.getAttribute('aria-sort') === 'none' || !header.hasAttribute('aria-sort')
      ? !header.classList.contains('num') : header.getAttribute('aria-sort') === 'descending';
    for (const other of all('th', table.tHead)) other.setAttribute('aria-sort', 'none');
    header.setAttribute('aria-sort', rising ? 'ascending' : 'descending');
    const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row.cells[column]), row]);
    rows.sort((a, b) => compare(a[0], b[0], rising ? 1 : -1));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    if (table.id !== 'sequences') return;
    const articles = rows.map(([, row]) => document.getElementById(`q${row.dataset.s}`)).filter(Boolean);
    if (articles.length) articles[0].parentElement.append(...articles);
  }

  for (const table of all('table.sortable')) {
    all('thead th', table).forEach((header, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener('click', () => sort(table, column, header));
    });
    walk(table.tHead, 'th button', ['ArrowLeft', 'ArrowRight']);
  }

  const search = one('#search');
  let texts = null;
  function find() {
    const wanted = search.value.trim().toLowerCase();
    const rows = all('#sequences tbody tr');
    if (!texts) {
      texts = new Map(rows.map((row) => {
        const article = document.getElementById(`q${row.dataset.s}`);
        const parts = [...all('td:not(.num)', row), ...(article ? all('h3 small, .pane', article) : [])];
        return [row, parts.map((part) => part.textContent).join('\n').toLowerCase()];
      }));
    }
    let n = 0;
    for (const row of rows) {
      row.hidden = Boolean(wanted) && !texts.get(row).includes(wanted);
      n += !row.hidden;
      const article = document.getElementById(`q${row.dataset.s}`);
      if (article) article.hidden = row.hidden;
    }
    const of = `${rows.length.toLocaleString('en')} ${one('#h-sequences').textContent.toLowerCase()}`;
    const said = n ? `${n.toLocaleString('en')} of ${of}` : `No hits: none of ${of} has “${search.value.trim()}” in its id or text`;
    one('#found').textContent = wanted ? said : '';
    one('#found').classList.toggle('none', !n);
    if (one('#no-hits')) one('#no-hits').hidden = n > 0;
    refreshStops();
  }
  if (search) search.addEventListener('input', find);

  // -- switches ------------------------------------------------------------------------------------

  for (const name of ['metric', 'scale', 'unit']) {
    const select = one(`#${name}`);
    select.addEventListener('change', () => {
      state[name] = select.value;
      if (name === 'unit') showUnit();
      else paint();
    });
  }
  one('#theme').addEventListener('change', (event) => {
    if (event.target.value) root.dataset.theme = event.target.value;
    else delete root.dataset.theme;
  });
  addEventListener('beforeprint', () => { for (const run of all('details.run')) run.open = true; });
  const marks = one('#marks');
  if (marks) marks.addEventListener('change', () => { root.dataset.marks = marks.checked ? 'on' : 'off'; });
  for (const box of all('[data-shows]')) {
    box.addEventListener('change', () => {
      root.dataset.hides = all('[data-shows]').filter((each) => !each.checked).map((each) => each.dataset.shows).join(' ');
      refreshStops();
    });
  }
})();
