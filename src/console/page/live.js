// The tab that shows what happens: figures, the feed with its filters, and the channels that there are.

import { Spark } from './chart.js';
import { showChannel, showSocket, showUser } from './detail.js';
import { ask, at, bytes, clock, el, micros, number, pretty, readLines, root, say, segment } from './dom.js';

const MAX_ROWS = 400;
const MAX_PAUSED = 5000;

const GROUPS = {
  all: '',
  problems: 'refused,closed,held_up,webhook_failed,redis,server',
  events: 'published,whispered,flushed',
  connections: 'connected,disconnected,closed,signed_in,resumed,terminated,withdrawn',
  subscriptions: 'subscribed,unsubscribed',
  webhooks: 'webhook_sent,webhook_failed',
};

/** Kinds that stand for something wrong. */
const WRONG = new Set(['refused', 'closed', 'held_up', 'webhook_failed']);

const TILES = [
  ['connections', 'Connections', (line) => number(line.connections)],
  ['deliveries', 'Deliveries / s', (line) => number(line.deliveries)],
  ['published', 'Events / s', (line) => number(line.published)],
  ['latency', 'Publish to flush', (line) => (line.latency ? `≤ ${micros(line.latency.p50)}` : '–')],
  ['subscriptions', 'Subscriptions', (line) => number(line.subscriptions)],
  ['refused', 'Refused / s', (line) => number(line.refused)],
];

/** What other parts of the page look at. */
export const seen = { facts: [], onHello: () => {}, state: undefined };

let sparks;
let controller;
let isPaused = false;
let waiting = [];
let queued = [];
let isDrawing = false;
let lastSpoken = 0;

export function begin(state) {
  seen.state = state;
  sparks = TILES.map(([name, label]) => {
    const value = el('strong', { id: `figure-${name}` }, '–');
    const note = el('small', { id: `note-${name}` });
    const tile = el('div', { class: 'tile' }, el('span', {}, label), value, note);
    at('tiles').append(tile);
    return new Spark(tile);
  });
  at('filter-app').append(...apps(state));
  at('filter-app').hidden = state.apps.length < 2;
  at('filters').addEventListener('change', restart);
  // Of the form, but not inside it.
  at('payloads').addEventListener('change', restart);
  at('filters').addEventListener('submit', (event) => {
    event.preventDefault();
    restart();
  });
  at('filters').addEventListener('reset', () => setTimeout(restart));
  at('pause').addEventListener('click', () => pause(!isPaused));
  at('clear').addEventListener('click', clear);
  at('channel-search').addEventListener('input', drawChannels);
  at('channel-app').append(...apps(state).slice(1));
  at('channel-app').hidden = state.apps.length < 2;
  at('channel-app').addEventListener('change', loadChannels);
  document.addEventListener('keydown', shortcut);
  setInterval(() => {
    if (!document.hidden && !at('panel-live').hidden) loadChannels();
  }, 3000);
  loadChannels();
  watch();
}

function apps(state) {
  const option = (app) => el('option', { value: app.id }, app.name ? `${app.name} (${app.id})` : app.id);
  return [el('option', { value: '' }, 'Every app'), ...state.apps.map(option)];
}

function shortcut(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at('panel-live').hidden) return;
  if (event.target.closest('input, textarea, select, dialog')) return;
  if (event.key === '/') {
    event.preventDefault();
    at('filter-channel').focus();
  } else if (event.key === 'p') {
    pause(!isPaused);
  }
}

/** Shows only what has to do with this. */
export function filterBy(filter) {
  at('filters').reset();
  for (const [name, value] of Object.entries(filter)) at(`filter-${name}`).value = value;
  location.hash = '#live';
  at('more-filters').open = Boolean(filter.socket || filter.user || filter.event);
  setTimeout(restart);
}

function query() {
  const wanted = new URLSearchParams();
  // What is typed is looked for anywhere in the name.
  const part = (text) => (text && !text.includes('*') ? `*${text}*` : text);
  const value = (name) => at(`filter-${name}`).value.trim();
  if (value('app')) wanted.set('app', value('app'));
  for (const name of ['channel', 'event', 'user']) if (value(name)) wanted.set(name, part(value(name)));
  if (value('socket')) wanted.set('socket', value('socket'));
  const kinds = GROUPS[value('group')];
  if (kinds) wanted.set('kind', kinds);
  if (at('payloads').checked) wanted.set('payloads', '1');
  return wanted;
}

function restart() {
  clear();
  controller?.abort();
}

/** Reads the feed for ever; begun again when it ends or is asked for something else. */
async function watch() {
  let node;
  for (;;) {
    controller = new AbortController();
    const { signal } = controller;
    try {
      const answer = await fetch(`${root}/console/feed?${query()}`, { signal, cache: 'no-store' });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) {
        const json = await answer.json().catch(() => ({}));
        throw new Error(json.error ?? `The server answered ${answer.status}.`);
      }
      await readLines(answer, (text) => {
        const line = JSON.parse(text);
        if (line.kind === 'hello') {
          setStatus('live', 'Live');
          if (node !== undefined && node !== line.node) seen.onHello(line);
          node = line.node;
          at('node').textContent = `node ${line.node}`;
        } else if (line.kind === 'figures') {
          drawFigures(line);
        } else {
          take(line);
        }
      });
      if (!signal.aborted) setStatus('gone', 'Reconnecting');
    } catch (error) {
      if (signal.aborted) continue;
      setStatus('gone', 'Reconnecting');
      at('status').title = String(error.message ?? error);
    }
    if (!signal.aborted) await new Promise((done) => setTimeout(done, 1000));
  }
}

function setStatus(state, text) {
  if (at('status').dataset.state === state) return;
  at('status').dataset.state = state;
  at('status-text').textContent = text;
  at('status').title = '';
}

function drawFigures(line) {
  TILES.forEach(([name, , text], index) => {
    at(`figure-${name}`).textContent = text(line);
    sparks[index].add(name === 'latency' ? line.latency?.p50 : line[name]);
  });
  at('note-connections').textContent = `+${number(line.connects)} −${number(line.disconnects)} / s`;
  at('note-subscriptions').textContent = `${number(line.channels)} channels, ${number(line.members)} members`;
  at('note-deliveries').textContent = `${bytes(line.sent_bytes)} / s`;
  at('note-published').textContent = `${number(line.received)} messages in / s`;
  at('note-latency').textContent = line.latency ? `99 % ≤ ${micros(line.latency.p99)}` : 'nothing was published';
  at('note-refused').textContent = 'sockets and messages';
  document.querySelector('#figure-refused').parentElement.classList.toggle('is-wrong', line.refused > 0);
  const failing = line.webhooks.filter((hook) => hook.failing).length;
  const queuedHooks = line.webhooks.reduce((sum, hook) => sum + hook.queued, 0);
  const facts = [
    ['Workers', line.workers.map((worker) => `${worker.busy} %`).join(' · ')],
    ['Memory', bytes(line.memory)],
    ['Waiting to be written', bytes(line.waiting_bytes)],
  ];
  if (line.redis !== null) facts.push(['Redis', line.redis ? 'up' : 'down', !line.redis]);
  if (line.webhooks.length) {
    facts.push(['Webhooks', failing ? `${failing} failing, ${queuedHooks} wait` : `${queuedHooks} wait`, failing > 0]);
  }
  const resuming = line.apps.reduce((sum, app) => sum + app.resume_waiting, 0);
  if (resuming) facts.push(['May come back', number(resuming)]);
  if (line.draining) facts.push(['Draining', `${number(line.connections)} still connected`, true]);
  at('server').replaceChildren(...facts.map(([name, value, isWrong]) => (
    el('div', { class: isWrong ? 'is-wrong' : undefined }, el('dt', {}, name), el('dd', {}, value)))));
  at('unseen').hidden = !line.unseen;
  at('unseen').textContent = `${number(line.unseen)} more in the last second that are not shown`;
}

function take(fact) {
  seen.facts.push(fact);
  if (seen.facts.length > 3000) seen.facts.splice(0, 1000);
  if (isPaused) {
    waiting.push(fact);
    if (waiting.length > MAX_PAUSED) waiting.shift();
    at('pause').textContent = `Go on (${waiting.length})`;
    return;
  }
  queued.push(fact);
  if (!isDrawing) {
    isDrawing = true;
    // A page that nobody sees is given no frames.
    if (document.hidden) setTimeout(draw, 250);
    else requestAnimationFrame(draw);
  }
}

function draw() {
  isDrawing = false;
  const rows = queued.slice(-MAX_ROWS).map(row).reverse();
  const wrong = queued.filter((fact) => WRONG.has(fact.kind) && !fact.past).at(-1);
  queued = [];
  at('feed').prepend(...rows);
  while (at('feed').children.length > MAX_ROWS) at('feed').lastElementChild.remove();
  at('feed-empty').hidden = at('feed').children.length > 0;
  if (wrong && Date.now() - lastSpoken > 5000) {
    lastSpoken = Date.now();
    say(`${label(wrong.kind)}: ${wrong.why ?? ''}`);
  }
}

function pause(paused) {
  isPaused = paused;
  at('pause').setAttribute('aria-pressed', String(paused));
  at('pause').textContent = paused ? 'Go on' : 'Pause';
  if (!paused) {
    const facts = waiting;
    waiting = [];
    facts.forEach(take);
  }
}

function clear() {
  queued = [];
  waiting = [];
  at('feed').replaceChildren();
  at('feed-empty').hidden = false;
  if (isPaused) at('pause').textContent = 'Go on';
}

const label = (kind) => kind.replace('_', ' ');

const socketLink = (id) => el('button', { type: 'button', class: 'link', onclick: () => showSocket(id) }, id);

/** What a row says in a line. */
function summary(fact) {
  const event = fact.event && el('b', {}, fact.event);
  const channel = fact.channel && el('span', { class: 'name' }, fact.channel);
  const subscribers = (count) => `${number(count)} subscriber${count === 1 ? '' : 's'}`;
  switch (fact.kind) {
    case 'published':
    case 'whispered':
      return [event, ' on ', channel, ` to ${subscribers(fact.count)} · ${bytes(fact.bytes)}`,
        fact.from ? ` · from ${fact.from}` : ''];
    case 'flushed':
      return [channel, ` to ${subscribers(fact.count)} · worker ${fact.worker} · `, fact.trace];
    case 'subscribed':
    case 'unsubscribed':
    case 'withdrawn':
      return [channel, fact.user ? ` as ${fact.user}` : ''];
    case 'resumed':
      return [channel, ` · ${number(fact.count)} events caught up on`, fact.why ? `, ${fact.why}` : ''];
    case 'connected':
      return [fact.address ?? '', ` by ${fact.transport}`, fact.compression ? `, compressed ${fact.compression}` : ''];
    case 'disconnected':
    case 'closed':
      return [fact.code ? `${fact.code} · ` : '', fact.why ?? fact.reason ?? ''];
    case 'signed_in':
    case 'terminated':
      return [el('b', {}, fact.user ?? ''), fact.why ? ` · ${fact.why}` : ''];
    case 'refused':
      return [fact.code ? el('b', {}, String(fact.code)) : '', ' ', fact.method ? `${fact.method} ${fact.path} · ` : '',
        channel ?? '', channel ? ' · ' : '', fact.why ?? ''];
    case 'webhook_sent':
      return [`${fact.count} event${fact.count === 1 ? '' : 's'} to webhook ${fact.webhook} of ${fact.app}`];
    case 'webhook_failed':
      return [`webhook ${fact.webhook} of ${fact.app} · `, fact.why ?? ''];
    default:
      return [fact.why ?? channel ?? ''];
  }
}

function row(fact) {
  const detail = el('div', { class: 'detail', hidden: true });
  const head = el('button', { type: 'button', class: 'head', 'aria-expanded': 'false' },
    el('time', {}, clock(fact.at)),
    el('span', { class: 'kind' }, label(fact.kind)),
    el('span', { class: 'text' }, summary(fact)));
  head.addEventListener('click', () => {
    const isOpen = head.getAttribute('aria-expanded') === 'true';
    head.setAttribute('aria-expanded', String(!isOpen));
    detail.hidden = isOpen;
    if (!isOpen && !detail.hasChildNodes()) detail.append(...details(fact));
  });
  const classes = ['row', WRONG.has(fact.kind) && 'is-wrong', fact.past && 'is-past'].filter(Boolean);
  return el('li', { class: classes.join(' '), 'data-kind': fact.kind }, head, detail);
}

/** What the server checked, in words. */
const EXPLAINED = {
  signed: 'The signature must be the hex of HMAC-SHA256 over this text, with the secret of the app. '
    + 'If your backend signs the same text, its secret is another.',
  origin: 'The app’s allowed_origins must have this origin.',
  key: 'The key that the client came with.',
};

function details(fact) {
  const skipped = new Set(['n', 'at', 'kind', 'data', 'data_cut', 'past']);
  const first = ['why', 'code', 'signed', 'app', 'channel', 'event', 'user', 'socket'];
  const place = (name) => (first.includes(name) ? first.indexOf(name) : first.length);
  const entries = Object.entries(fact).filter(([name]) => !skipped.has(name)).sort(([a], [b]) => place(a) - place(b));
  const list = el('dl', {}, entries.map(([name, value]) => (
    el('div', {}, el('dt', {}, name), el('dd', {},
      name === 'socket' ? socketLink(value)
        : name === 'channel' && fact.app
          ? el('button', { type: 'button', class: 'link', onclick: () => showChannel(fact.app, value) }, value)
          : name === 'user' ? el('button', { type: 'button', class: 'link', onclick: () => showUser(fact.app, value) }, value)
            : String(value),
      EXPLAINED[name] && fact.kind === 'refused' ? el('p', { class: 'hint' }, EXPLAINED[name]) : '')))));
  const parts = [list];
  if (fact.past) parts.push(el('p', { class: 'hint' }, 'This was before you looked. What goes wrong is remembered for a while.'));
  if (fact.data !== undefined) {
    parts.push(el('pre', { tabindex: '0' }, pretty(fact.data)));
    if (fact.data_cut) parts.push(el('p', { class: 'hint' }, 'The payload is longer: this is its beginning.'));
  } else if (fact.bytes !== undefined) {
    parts.push(el('p', { class: 'hint' }, 'Payloads are shown only if you switch them on, above, and from then on.'));
  }
  return parts;
}

let channels = [];

async function loadChannels() {
  const app = at('channel-app').value || seen.state.apps[0]?.id;
  if (!app) return;
  try {
    const answer = await ask(`apps/${segment(app)}/channels?info=subscription_count`);
    channels = Object.entries(answer.channels)
      .map(([name, { subscription_count: count }]) => ({ app, name, count }))
      .sort((a, b) => b.count - a.count || a.name.localeCompare(b.name));
    at('channel-error').textContent = '';
  } catch (error) {
    at('channel-error').textContent = error.message;
  }
  drawChannels();
}

function drawChannels() {
  const wanted = at('channel-search').value.trim();
  const found = channels.filter(({ name }) => name.includes(wanted));
  at('channel-count').textContent = channels.length ? String(channels.length) : '';
  at('channels-empty').hidden = found.length > 0;
  const focused = document.activeElement?.dataset?.channel;
  at('channels').replaceChildren(...found.slice(0, 200).map(({ app, name, count }) => el('li', {},
    el('button', { type: 'button', 'data-channel': name, onclick: () => showChannel(app, name) },
      el('span', { class: 'name' }, name), el('span', { class: 'count' }, number(count))))));
  if (focused !== undefined) {
    [...at('channels').querySelectorAll('button')].find((one) => one.dataset.channel === focused)?.focus();
  }
  at('channels-more').hidden = found.length <= 200;
  at('channels-more').textContent = `and ${number(found.length - 200)} more`;
}


