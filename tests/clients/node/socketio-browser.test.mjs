// Pages of laravel-echo-server in a real browser: another origin on the same host, as these pages are, whose cookies sign
// the user in. Needs a program that was built with the feature `socketio`.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { browse, packaged, Site } from './chromium.mjs';
import { socketIoStage } from './stage.mjs';
import { until } from './waiting.mjs';

const CLIENTS = {
  2: 'socket.io-client-2/dist/socket.io.js',
  3: 'socket.io-client-3/dist/socket.io.js',
  4: 'socket.io-client/dist/socket.io.js',
};
const ECHO = 'laravel-echo/dist/echo.iife.js';
const WAYS = { polling: ['polling'], websocket: ['websocket'], 'polling, then websocket': undefined };

// It goes before the server does.
after(() => on.site?.stop());
const on = socketIoStage();
const browser = browse();

before(async () => {
  const scripts = [...Object.values(CLIENTS), ECHO].map((path) => [`/${path}`, packaged(path)]);
  on.site = await Site.start(Object.fromEntries(scripts));
});

/** What runs in the page. */
function begin({ host, transports, name, token }) {
  document.cookie = `session=${token}`;
  const Echo = window.Echo.default ?? window.Echo;
  const options = transports ? { transports } : {};
  const echo = new Echo({ broadcaster: 'socket.io', host, withCredentials: true, ...options });
  window.echo = echo;
  window.heard = [];
  echo.join(name).here((members) => window.heard.push(['here', members]));
  echo.join(name).listen('.e', (data) => window.heard.push(['e', data]));
}

for (const [version, script] of Object.entries(CLIENTS)) {
  for (const [way, transports] of Object.entries(WAYS)) {
    test(`socket.io-client ${version}, ${way}: the page's cookie signs it in`, async () => {
      const page = await browser.open(`${on.site.origin}/`);
      for (const path of [script, ECHO]) await page.addScriptTag({ url: `/${path}` });
      const name = `room-${version}-${way.length}`;
      const host = `http://localhost:${on.server.port}`;
      await page.evaluate(begin, { host, transports, name, token: on.application.token('ben') });
      const heard = () => page.evaluate(() => window.heard);
      await until('the members', async () => (await heard()).length === 1);
      await on.backend.trigger(`presence-${name}`, 'e', { text: 'Grüße 🚀' });
      await until('the event', async () => (await heard()).length === 2);
      assert.deepEqual(await heard(), [
        ['here', [{ name: 'Ben' }]],
        ['e', { text: 'Grüße 🚀' }],
      ]);
      const used = () => page.evaluate(() => window.echo.connector.socket.io.engine.transport.name);
      const last = transports?.[0] ?? 'websocket';
      await until(last, async () => (await used()) === last);
      assert.deepEqual(page.complaints, []);
      await page.context().close();
    });
  }
}
