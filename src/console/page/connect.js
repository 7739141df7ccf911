// The tab with the lines that connect an app to this server.

import { at, copyButton, el, root } from './dom.js';
import { connections } from './snippets.js';

let state;

export function begin(given) {
  const chosen = at('connect-app').value;
  state = given;
  at('connect-app').replaceChildren(...state.apps.map((app) => (
    el('option', { value: app.id, selected: app.id === chosen }, app.name ? `${app.name} (${app.id})` : app.id))));
  at('connect-app').parentElement.hidden = state.apps.length < 2;
  at('connect-app').onchange = draw;
  draw();
}

function draw() {
  const app = state.apps.find(({ id }) => id === at('connect-app').value) ?? state.apps[0];
  at('connect-address').textContent = `${location.protocol}//${location.host}${root}`;
  at('connect-key').textContent = app?.key ?? 'no app';
  at('snippets').replaceChildren(...(app ? connections(app, root, state) : []).map(([title, hint, lines]) => {
    const code = el('pre', { tabindex: '0', 'aria-label': title }, lines);
    return el('section', { class: 'card' },
      el('header', {}, el('h3', {}, title), copyButton(() => lines, 'Copy')),
      el('p', { class: 'hint' }, hint), code);
  }));
}
