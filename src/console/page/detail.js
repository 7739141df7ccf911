// One channel, socket or user, in a sheet beside the page.

import { ago, ask, at, bytes, clock, el, number, segment } from './dom.js';
import { filterBy, seen } from './live.js';

let shown = 0;

/** Opens the sheet with a title and what `load` gives. */
async function open(title, load) {
  shown += 1;
  const mine = shown;
  const sheet = at('sheet');
  at('sheet-title').textContent = title;
  at('sheet-body').replaceChildren(el('p', { class: 'hint' }, 'Looking …'));
  if (!sheet.open) sheet.showModal();
  try {
    const body = await load();
    if (mine === shown) at('sheet-body').replaceChildren(...body.flat().filter(Boolean));
  } catch (error) {
    if (mine === shown) at('sheet-body').replaceChildren(el('p', { class: 'is-wrong' }, error.message));
  }
}

const button = (text, act) => el('button', { type: 'button', onclick: act }, text);
const link = (text, act) => el('button', { type: 'button', class: 'link', onclick: act }, text);

function filterButton(filter) {
  return button('Show only this in the feed', () => {
    at('sheet').close();
    filterBy(filter);
  });
}

const facts = (pairs) => el('dl', {}, pairs.filter(Boolean).map(([name, value]) => (
  el('div', {}, el('dt', {}, name), el('dd', {}, value)))));

export function showChannel(app, name) {
  return open(name, async () => {
    const isPresence = name.startsWith('presence-');
    const path = `apps/${segment(app)}/channels/${segment(name)}`;
    const [channel, users, { sockets }] = await Promise.all([
      ask(`${path}?info=subscription_count${isPresence ? ',user_count' : ''}`),
      isPresence ? ask(`${path}/users`) : undefined,
      ask(`sockets?app=${segment(app)}&channel=${segment(name)}`),
    ]);
    const isMany = seen.state.cluster;
    return [
      facts([
        ['App', app],
        ['Subscriptions', `${number(channel.subscription_count)}${isMany ? ' on all nodes' : ''}`],
        isPresence && ['Members', `${number(channel.user_count)}${isMany ? ' on all nodes' : ''}`],
      ]),
      el('p', { class: 'actions' }, filterButton({ channel: name })),
      users && list('Members', users.users.map(({ id }) => link(id, () => showUser(app, id))), 'Nobody is here.'),
      list(isMany ? 'Sockets on this node' : 'Sockets', sockets.map(socketLine), 'None.'),
    ];
  });
}

function socketLine(socket) {
  return [link(socket.id, () => showSocket(socket.id)), ` ${socket.address}, for ${ago(socket.age)}`,
    socket.user ? ` as ${socket.user}` : ''];
}

function list(title, entries, none) {
  return [
    el('h3', {}, title),
    entries.length
      ? el('ul', { class: 'plain' }, entries.slice(0, 200).map((entry) => el('li', {}, entry)))
      : el('p', { class: 'hint' }, none),
    entries.length > 200 && el('p', { class: 'hint' }, `and ${entries.length - 200} more`),
  ];
}

export function showSocket(id) {
  return open(`Socket ${id}`, async () => {
    let socket;
    try {
      socket = await ask(`sockets/${segment(id)}`);
    } catch {
      return [
        el('p', {}, seen.state.cluster
          ? 'It has gone, or is on another node: sockets are seen on their own node.' : 'It has gone.'),
        el('p', { class: 'actions' }, filterButton({ socket: id })),
        refusals(id),
      ];
    }
    return [
      facts([
        ['App', socket.app],
        ['Address', socket.address],
        ['Connected', `for ${ago(socket.age)}`],
        ['Last heard', `${ago(socket.silent)} ago`],
        ['User', socket.user ? link(socket.user, () => showUser(socket.app, socket.user)) : 'not signed in'],
        ['Transport', socket.transport],
        ['Compression', socket.compressed ? 'agreed on' : 'none'],
        ['Resumable', socket.resumable ? 'yes' : 'no'],
        ['Waits to be written', bytes(socket.waiting)],
      ]),
      el('p', { class: 'actions' }, filterButton({ socket: id })),
      list(`Channels (${number(socket.channel_count)})`, socket.channels.map(({ name, user }) => (
        [link(name, () => showChannel(socket.app, name)), user ? ` as ${user}` : ''])), 'It is subscribed to none.'),
      refusals(id),
    ];
  });
}

/** What of one socket was refused, as far as this page has heard. */
function refusals(id) {
  const all = seen.facts.filter((fact) => fact.socket === id && (fact.kind === 'refused' || fact.kind === 'closed'));
  return list('Refused lately', all.slice(-20).reverse().map((fact) => (
    `${clock(fact.at)}  ${fact.code ?? ''} ${fact.channel ?? ''} ${fact.why ?? ''}`)), 'Nothing that was seen here.');
}

export function showUser(app, id) {
  return open(`User ${id}`, async () => {
    const { sockets } = await ask(`sockets?user=${segment(id)}${app ? `&app=${segment(app)}` : ''}`);
    return [
      el('p', { class: 'actions' }, filterButton({ user: id })),
      list(seen.state.cluster ? 'Sockets on this node' : 'Sockets', sockets.map(socketLine), 'None.'),
    ];
  });
}
