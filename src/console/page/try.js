// The tab to try the server on: a client like any other, whose private channels the server signs for this page, and a
// backend that sends events.

import { ask, at, clock, copyButton, el, number, pretty, root, say, segment } from './dom.js';
import { Link } from './link.js';
import { snippets, socketsHost } from './snippets.js';

const MAX_ROWS = 200;

let state;
let link;
let socketId;
let retry;
let hasHeard = false;
/** By name: what is known of each channel that was joined. */
const joined = new Map();

const app = () => state.apps.find(({ id }) => id === at('try-app').value) ?? state.apps[0];

export function begin(given) {
  state = given;
  fillApps();
  at('try-app').addEventListener('change', () => connect());
  at('try-transport').addEventListener('change', () => connect());
  at('try-reconnect').addEventListener('click', () => connect());
  at('join').addEventListener('submit', (event) => {
    event.preventDefault();
    join(at('join-channel').value.trim());
  });
  at('join-channel').addEventListener('input', offerMember);
  at('sign-in').addEventListener('submit', signIn);
  at('send').addEventListener('submit', sendEvent);
  at('send').addEventListener('input', drawCode);
  at('end-user').addEventListener('submit', endUser);
  at('try-clear').addEventListener('click', () => at('arrivals').replaceChildren());
  for (const button of document.querySelectorAll('#code-tabs button')) {
    button.addEventListener('click', () => {
      for (const other of document.querySelectorAll('#code-tabs button')) {
        other.setAttribute('aria-pressed', String(other === button));
      }
      drawCode();
    });
  }
  at('code-box').append(copyButton(() => at('code').textContent));
  at('hero-box').append(copyButton(() => at('hero-code').textContent));
  joined.set('my-channel', {});
  offerMember();
}

/** Connects when the tab is shown for the first time: whoever only looks is no client. */
export function shown() {
  if (!link) connect();
  drawCode();
  drawHero();
}

/** The server was restarted, perhaps with another app. */
export function renew(given) {
  state = given;
  fillApps();
  if (link) connect();
}

function fillApps() {
  const chosen = at('try-app').value;
  at('try-app').replaceChildren(...state.apps.map((one) => (
    el('option', { value: one.id, selected: one.id === chosen }, one.name ? `${one.name} (${one.id})` : one.id))));
  at('try-transport').querySelector('[value=http]').disabled = !state.fallback || Boolean(state.sockets_port);
}

function connect() {
  clearTimeout(retry);
  link?.close();
  socketId = undefined;
  const one = app();
  if (!one) return note('There is no app yet.', 'closed');
  note('Connecting …', 'connecting');
  at('try-note').textContent = one.admits_this_origin ? ''
    : `The app’s allowed_origins do not have ${location.origin}: it will refuse this page.`;
  link = new Link({
    key: one.key, host: socketsHost(state), transport: at('try-transport').value, take, ended,
  });
}

function note(text, name) {
  at('try-status').textContent = text;
  at('try-status').dataset.state = name;
}

function ended(ending, code, reason) {
  if (ending !== link) return;
  socketId = undefined;
  for (const channel of joined.values()) delete channel.members;
  note(code ? `Closed: ${code} ${reason}` : 'Closed', 'closed');
  arrived('closed', '', code ? `${code} ${reason}` : 'the connection was lost');
  drawJoined();
  // What the protocol says: 4000 to 4099 is for good.
  if (!(code >= 4000 && code < 4100)) retry = setTimeout(connect, 1000 + Math.random() * 1000);
}

function tell(event, data, channel) {
  link?.send(JSON.stringify(channel ? { event, data, channel } : { event, data }));
}

function take(from, text) {
  if (from !== link) return;
  let frame;
  try {
    frame = JSON.parse(text);
  } catch {
    return arrived('not JSON', '', text);
  }
  const data = typeof frame.data === 'string' ? frame.data : frame.data && JSON.stringify(frame.data);
  const parsed = () => {
    try {
      return JSON.parse(data);
    } catch {
      return {};
    }
  };
  const channel = joined.get(frame.channel);
  switch (frame.event) {
    case 'pusher:ping':
      return tell('pusher:pong', {});
    case 'pusher:pong':
      return undefined;
    case 'pusher:connection_established':
      socketId = parsed().socket_id;
      note(`Connected as ${socketId}${link.extensions ? ', compressed' : ''}`, 'connected');
      for (const name of joined.keys()) subscribe(name);
      if (at('sign-in-user').dataset.signed) signIn();
      break;
    case 'pusher_internal:subscription_succeeded':
      if (channel) {
        channel.isIn = true;
        channel.why = undefined;
        if (frame.channel.startsWith('presence-')) {
          channel.members = new Map(Object.entries(parsed().presence?.hash ?? {}));
        }
      }
      break;
    case 'pusher:subscription_error':
      if (channel) {
        channel.isIn = false;
        channel.why = parsed().error ?? 'refused';
      }
      break;
    case 'pusher_internal:member_added':
      channel?.members?.set(parsed().user_id, parsed().user_info);
      break;
    case 'pusher_internal:member_removed':
      channel?.members?.delete(parsed().user_id);
      break;
    default:
      if (!frame.event.startsWith('pusher')) {
        hasHeard = true;
        drawHero();
      }
  }
  drawJoined();
  return arrived(frame.event, frame.channel ?? '', data ?? '');
}

function arrived(event, channel, data) {
  const detail = el('pre', { hidden: true, tabindex: '0' }, pretty(data));
  const head = el('button', { type: 'button', class: 'head', 'aria-expanded': 'false' },
    el('time', {}, clock(Date.now())), el('b', { class: 'kind' }, event),
    el('span', { class: 'text' }, channel && el('span', { class: 'name' }, channel), channel && ' ', data.slice(0, 400)));
  head.addEventListener('click', () => {
    detail.hidden = !detail.hidden;
    head.setAttribute('aria-expanded', String(!detail.hidden));
  });
  const isOwn = event.startsWith('pusher') || event === 'closed';
  at('arrivals').prepend(el('li', { class: isOwn ? 'row is-quiet' : 'row' }, head, detail));
  while (at('arrivals').children.length > MAX_ROWS) at('arrivals').lastElementChild.remove();
  if (!isOwn) say(`${event} on ${channel}`);
}

function offerMember() {
  at('member').hidden = !at('join-channel').value.startsWith('presence-');
  at('encrypted').hidden = !at('join-channel').value.startsWith('private-encrypted-');
}

function join(name) {
  if (!name) return;
  joined.set(name, { member: at('member-id').value.trim() || `console-${Math.floor(Math.random() * 1e6)}` });
  if (socketId) subscribe(name);
  drawJoined();
}

async function subscribe(name) {
  const channel = joined.get(name);
  const data = { channel: name };
  try {
    if (name.startsWith('presence-')) {
      data.channel_data = JSON.stringify({ user_id: channel.member ?? 'console', user_info: { name: 'Console' } });
    }
    if (name.startsWith('private-') || name.startsWith('presence-')) {
      Object.assign(data, await ask('authorize', {
        method: 'POST', body: { app: app().id, socket_id: socketId, ...data },
      }));
      delete data.app;
    }
    tell('pusher:subscribe', data);
  } catch (error) {
    channel.why = error.message;
    drawJoined();
  }
}

function leave(name) {
  tell('pusher:unsubscribe', { channel: name });
  joined.delete(name);
  drawJoined();
}

function drawJoined() {
  const focused = document.activeElement?.closest?.('#joined') && document.activeElement.name;
  if (focused) return drawStates();
  return at('joined').replaceChildren(...[...joined].map(([name, channel]) => {
    const canWhisper = name.startsWith('private-') || name.startsWith('presence-') || app()?.client_events === 'members';
    return el('li', { 'data-channel': name },
      el('div', { class: 'line' }, el('span', { class: 'name' }, name), el('span', { class: 'state' }),
        el('button', { type: 'button', class: 'quiet', 'aria-label': `Leave ${name}`, onclick: () => leave(name) }, 'Leave')),
      el('p', { class: 'members' }),
      canWhisper && channel.isIn && whisperForm(name));
  })) ?? drawStates();
}

/** What changes by itself, without touching what a person types in. */
function drawStates() {
  for (const item of at('joined').children) {
    const channel = joined.get(item.dataset.channel);
    if (!channel) continue;
    item.querySelector('.state').textContent = channel.isIn ? 'subscribed' : channel.why ? 'refused' : 'not yet';
    item.classList.toggle('is-wrong', Boolean(channel.why));
    const members = channel.members && [...channel.members.keys()];
    item.querySelector('.members').textContent = channel.why
      ?? (members ? `${number(members.length)} here: ${members.slice(0, 50).join(', ')}` : '');
  }
}

function whisperForm(name) {
  const event = el('input', { name: 'event', value: 'client-typing', 'aria-label': 'Event of the whisper', required: true });
  const data = el('input', { name: 'data', value: '{}', 'aria-label': 'Data of the whisper' });
  return el('form', {
    class: 'whisper',
    onsubmit: (submitted) => {
      submitted.preventDefault();
      let value = data.value;
      try {
        value = JSON.parse(value);
      } catch { /* A text is data too. */ }
      const word = event.value.startsWith('client-') ? event.value : `client-${event.value}`;
      tell(word, value, name);
      arrived(`${word} (sent)`, name, data.value);
    },
  }, event, data, el('button', {}, 'Whisper'));
}

async function signIn(event) {
  event?.preventDefault();
  const id = at('sign-in-user').value.trim();
  if (!id || !socketId) return;
  at('sign-in-user').dataset.signed = '1';
  try {
    const body = { app: app().id, socket_id: socketId, user_data: JSON.stringify({ id }) };
    tell('pusher:signin', await ask('authorize', { method: 'POST', body }));
  } catch (error) {
    arrived('sign-in', '', error.message);
  }
}

function event() {
  return { name: at('send-event').value, channel: at('send-channel').value.trim(), data: at('send-data').value };
}

async function sendEvent(submitted) {
  submitted.preventDefault();
  const { name, channel, data } = event();
  try {
    await ask(`apps/${segment(app().id)}/events`, { method: 'POST', body: { name, channels: [channel], data } });
    at('send-answer').textContent = `Sent at ${clock(Date.now())}.`;
    at('send-answer').classList.remove('is-wrong');
  } catch (error) {
    at('send-answer').textContent = error.message;
    at('send-answer').classList.add('is-wrong');
  }
}

async function endUser(submitted) {
  submitted.preventDefault();
  const user = at('end-user-id').value.trim();
  try {
    const path = `apps/${segment(app().id)}/users/${segment(user)}/terminate_connections`;
    await ask(path, { method: 'POST', body: {} });
    at('end-answer').textContent = `All connections of ${user} are closed.`;
  } catch (error) {
    at('end-answer').textContent = error.message;
  }
}

async function curl({ name, channel, data }) {
  const body = JSON.stringify({ name, channels: [channel], data });
  const { path, query } = await ask('sign', { method: 'POST', body: { app: app().id, body } });
  const quoted = body.replaceAll("'", "'\\''");
  return `curl -sS -H 'Content-Type: application/json' -d '${quoted}' '${location.origin}${path}?${query}'`;
}

let drawing = 0;

async function drawCode() {
  if (!app()) return;
  const language = document.querySelector('#code-tabs [aria-pressed=true]').dataset.language;
  drawing += 1;
  const mine = drawing;
  let text;
  try {
    text = language === 'curl' ? await curl(event()) : snippets(app(), root)[language](event());
  } catch (error) {
    text = error.message;
  }
  if (mine !== drawing) return;
  at('code').textContent = text;
  at('code-note').textContent = language === 'curl'
    ? 'Signed for the next ten minutes.'
    : 'The app’s secret is not shown here: it is in your settings, or the server printed it when it started.';
}

async function drawHero() {
  at('hero').hidden = hasHeard || !state.made;
  if (at('hero').hidden || at('hero-code').textContent) return;
  const greeting = { name: 'greeting', channel: 'my-channel', data: JSON.stringify({ text: 'Hello' }) };
  at('hero-code').textContent = await curl(greeting).catch((error) => error.message);
}
