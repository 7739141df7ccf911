// The page: its tabs, and what it knows of the server.

import { ask, at } from './dom.js';
import * as connect from './connect.js';
import * as live from './live.js';
import * as trying from './try.js';

const TABS = ['live', 'try', 'connect'];

function show(name) {
  for (const one of TABS) {
    const isShown = one === name;
    at(`tab-${one}`).setAttribute('aria-selected', String(isShown));
    at(`tab-${one}`).tabIndex = isShown ? 0 : -1;
    at(`panel-${one}`).hidden = !isShown;
  }
  document.title = `${at(`tab-${name}`).textContent} · Fanfare`;
  if (name === 'try') trying.shown();
}

function chosen() {
  const name = location.hash.slice(1);
  return TABS.includes(name) ? name : undefined;
}

at('tabs').addEventListener('keydown', (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = TABS[(TABS.indexOf(document.activeElement.dataset.tab) + step + TABS.length) % TABS.length];
  location.hash = `#${next}`;
  at(`tab-${next}`).focus();
});
for (const name of TABS) at(`tab-${name}`).addEventListener('click', () => { location.hash = `#${name}`; });
addEventListener('hashchange', () => show(chosen() ?? 'live'));
at('sheet-close').addEventListener('click', () => at('sheet').close());
at('sheet').addEventListener('click', (event) => { if (event.target === at('sheet')) at('sheet').close(); });

function describe(state) {
  at('version').textContent = state.version;
  at('scope').textContent = state.cluster ? 'The feed is this node’s; channels are those of all nodes.' : '';
  at('logout').hidden = !state.is_by_token;
}

at('logout').addEventListener('click', async () => {
  await ask('logout', { method: 'POST', body: {} });
  location.reload();
});

const state = await ask('state');
describe(state);
live.begin(state);
trying.begin(state);
connect.begin(state);
show(chosen() ?? (state.made ? 'try' : 'live'));

// After a restart there may be other apps, and another key.
live.seen.onHello = async () => {
  const renewed = await ask('state');
  live.seen.state = renewed;
  describe(renewed);
  trying.renew(renewed);
  connect.begin(renewed);
};
