// pusher-js of three generations and Echo in a real browser whose WebSockets are blocked: what works over a WebSocket
// works over each HTTP transport, and without an option for it behind a proxy that cuts WebSockets.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { Application } from './application.mjs';
import { browse, packaged, Site } from './chromium.mjs';
import { backend } from './clients.mjs';
import { cutsWebSockets } from './cutting.mjs';
import { Server } from './server.mjs';
import { stage } from './stage.mjs';
import { until } from './waiting.mjs';

const LIBRARIES = {
  'pusher-js 8.6': 'pusher-js/dist/web/pusher-with-encryption.js',
  'pusher-js 7.6': 'pusher-js-7/dist/web/pusher-with-encryption.js',
  'pusher-js 4.4': 'pusher-js-4/dist/web/pusher.js',
  Echo: 'pusher-js/dist/web/pusher-with-encryption.js',
};
const ECHO = 'laravel-echo/dist/echo.iife.js';
const HTTP = ['xhr_streaming', 'xhr_polling'];

/** Long enough for a client that waits 15 s before it tries again. */
const BACK = 60_000;

const on = stage({ app: 'client_events = "members"' });
const browser = browse();
let site;
before(async () => {
  const scripts = [...new Set(Object.values(LIBRARIES)), ECHO].map((path) => [`/${path}`, packaged(path)]);
  site = await Site.start(Object.fromEntries(scripts));
});
after(() => site?.stop());

/** What runs in the page: one client, and everything that it hears, as `[channel, event, data]`. */
function begin({ library, key, options, application, token }) {
  const headers = { Authorization: `Bearer ${token}` };
  window.heard = [];
  window.errors = [];
  if (library === 'Echo') {
    const Echo = window.Echo.default ?? window.Echo;
    window.echo = new Echo({
      broadcaster: 'reverb',
      key,
      ...options,
      authEndpoint: application.channel,
      userAuthentication: { endpoint: application.user, headers },
      auth: { headers },
    });
    window.client = window.echo.connector.pusher;
  } else {
    window.client = new window.Pusher(key, {
      cluster: 'unused',
      ...options,
      authEndpoint: application.channel,
      auth: { headers },
      userAuthentication: { endpoint: application.user, headers },
    });
  }
  window.client.connection.bind('error', (error) => window.errors.push((error.data ?? error.error?.data)?.code));
  window.join = (name) => {
    const channel = window.client.subscribe(name);
    channel.bind_global((event, data) => {
      if (event === 'pusher:subscription_succeeded') window.heard.push([name, 'in', data?.count ?? null]);
      else if (event === 'pusher:member_added') window.heard.push([name, 'added', data.id]);
      else if (event === 'pusher:member_removed') window.heard.push([name, 'removed', data.id]);
      else if (!event.startsWith('pusher')) window.heard.push([name, event, data]);
    });
  };
}

/** The same for what Echo has words of its own for. */
function beginWithEcho(name) {
  const { echo, heard } = window;
  const told = (event) => (data) => heard.push([name, event, data]);
  echo
    .join(name)
    .here(told('here'))
    .joining(told('joining'))
    .leaving(told('leaving'))
    .listen('.said', told('said'))
    .listenForWhisper('typing', told('typing'));
}

/** A page with a client; `heard` waits until it has heard this. */
async function client(library, user, options, { server, application } = on) {
  const page = await browser.open(site.origin);
  await page.addScriptTag({ url: `/${LIBRARIES[library]}` });
  if (library === 'Echo') {
    await page.addScriptTag({ url: `/${ECHO}` });
  }
  await page.evaluate(begin, {
    library,
    key: server.key,
    options: {
      wsHost: server.host,
      wsPort: server.port,
      httpHost: server.host,
      httpPort: server.port,
      forceTLS: false,
      encrypted: false,
      disableStats: true,
      ...options,
    },
    application: { channel: application.channelEndpoint, user: application.userEndpoint },
    token: application.token(user),
  });
  const state = () => page.evaluate(() => window.client.connection.state);
  return {
    page,
    state,
    connected: (deadline) => until('connected', async () => (await state()) === 'connected', deadline),
    transport: () => page.evaluate(() => window.client.connection.connection.transport.name),
    socket: () => page.evaluate(() => window.client.connection.socket_id),
    join: (name) => page.evaluate((name) => window.join(name), name),
    all: () => page.evaluate(() => window.heard),
    async heard(channel, event, data, deadline) {
      const wanted = JSON.stringify([channel, event, data]);
      const is = (one) => JSON.stringify(one) === wanted;
      return until(`${user} hears ${wanted}`, async () => (await this.all()).some(is), deadline);
    },
    close: () => page.context().close(),
  };
}

for (const transport of HTTP) {
  for (const library of ['pusher-js 8.6', 'pusher-js 7.6', 'pusher-js 4.4']) {
    test(`${library} does over ${transport} what it does over a WebSocket`, async () => {
      const options = { enabledTransports: [transport] };
      const named = (kind) => `${kind}${transport}-${library.replace(/[^\w]/g, '-')}`;
      const [ann, ben] = [await client(library, 'ann', options), await client(library, 'ben', options)];
      await Promise.all([ann.connected(), ben.connected()]);
      assert.equal(await ann.transport(), transport);

      const kinds = ['', 'private-', ...(library.endsWith('4.4') ? [] : ['private-encrypted-'])];
      for (const kind of kinds) {
        await ann.join(named(kind));
        await ann.heard(named(kind), 'in', null);
        await on.backend.trigger(named(kind), 'said', { text: 'Grüße 🚀' });
        await ann.heard(named(kind), 'said', { text: 'Grüße 🚀' });
      }

      const room = named('presence-');
      await ann.join(room);
      await ann.heard(room, 'in', 1);
      await ben.join(room);
      await ben.heard(room, 'in', 2);
      await ann.heard(room, 'added', '2');
      await ben.page.evaluate((room) => window.client.channel(room).trigger('client-typing', { n: 1 }), room);
      await ann.heard(room, 'client-typing', { n: 1 });
      await on.backend.trigger(room, 'others', {}, { socket_id: await ann.socket() });
      await ben.heard(room, 'others', {});
      await on.backend.trigger(room, 'fence', {});
      await ann.heard(room, 'fence', {});
      const spared = (await ann.all()).filter(([, event]) => event === 'others');
      assert.deepEqual(spared, [], 'toOthers spares its own socket');

      if (!library.endsWith('4.4')) {
        await ann.page.evaluate(() => {
          window.client.user.bind('poke', (data) => window.heard.push(['user', 'poke', data]));
          window.client.signin();
        });
        await until('she is signed in', async () => {
          await on.backend.sendToUser('1', 'poke', { n: 2 });
          return (await ann.all()).some(([channel]) => channel === 'user');
        });
        await on.backend.terminateUserConnections('1');
        await until('terminated', () => ann.page.evaluate(() => window.errors.includes(4009)));
        await until('ann stays away', async () => (await ann.state()) === 'disconnected');
        await ben.heard(room, 'removed', '1');
      } else {
        await ann.close();
        await ben.heard(room, 'removed', '1');
      }
      assert.deepEqual(ben.page.complaints, []);
      await Promise.all([ann.close(), ben.close()]);
    });
  }

  test(`Echo does over ${transport} what it does over a WebSocket`, async () => {
    const options = { enabledTransports: [transport] };
    const [ann, ben] = [await client('Echo', 'ann', options), await client('Echo', 'ben', options)];
    await Promise.all([ann.connected(), ben.connected()]);
    const name = `echo-${transport}`;
    const { user_info: info } = on.application.user('ann');
    await ann.page.evaluate(beginWithEcho, name);
    await ann.heard(name, 'here', [info]);
    await ben.page.evaluate(beginWithEcho, name);
    await ben.heard(name, 'here', [info, { name: 'Ben' }]);
    await ann.heard(name, 'joining', { name: 'Ben' });
    await ben.page.evaluate((name) => window.echo.join(name).whisper('typing', { n: 1 }), name);
    await ann.heard(name, 'typing', { n: 1 });
    await on.backend.trigger(`presence-${name}`, 'said', { n: 2 }, { socket_id: await ben.socket() });
    await ann.heard(name, 'said', { n: 2 });
    await ben.page.evaluate((name) => window.echo.leave(name), name);
    await ann.heard(name, 'leaving', { name: 'Ben' });
    assert.ok(!(await ben.all()).some(([, event]) => event === 'said'), 'toOthers spares its own socket');
    assert.deepEqual(ann.page.complaints, []);
    await Promise.all([ann.close(), ben.close()]);
  });

  test(`a restart is survived over ${transport}`, async () => {
    let server = await Server.start();
    const application = await Application.start(server);
    const libraries = Object.keys(LIBRARIES);
    try {
      const all = [];
      for (const library of libraries) {
        const one = await client(library, 'ann', { enabledTransports: [transport] }, { server, application });
        await one.connected();
        await one.join('restart');
        await one.heard('restart', 'in', null);
        all.push(one);
      }
      await server.stop();
      for (const one of all) {
        await until('told why', () => one.page.evaluate(() => window.errors.includes(4200)));
      }
      server = await Server.start({ port: server.port });
      const sdk = backend(server);
      await until('all are subscribed again', async () => {
        const info = { info: 'subscription_count' };
        const answer = await sdk.get({ path: '/channels/restart', params: info });
        return (await answer.json()).subscription_count === libraries.length;
      }, BACK);
      await sdk.trigger('restart', 'back', { n: 1 });
      for (const one of all) {
        await one.heard('restart', 'back', { n: 1 });
        assert.equal(await one.transport(), transport);
        await one.close();
      }
    } finally {
      await application.stop();
      await server.stop();
    }
  });
}

describe('behind a proxy that cuts WebSockets', () => {
  let proxy;
  before(async () => {
    proxy = await cutsWebSockets(() => on.server);
  });
  after(() => {
    proxy?.close();
  });

  for (const library of Object.keys(LIBRARIES)) {
    test(`${library} falls back by itself`, async () => {
      const { port } = proxy;
      const one = await client(library, 'ann', { wsPort: port, wssPort: port, httpPort: port });
      await one.connected();
      assert.equal(await one.transport(), 'xhr_streaming');
      await one.join('news');
      await one.heard('news', 'in', null);
      await on.backend.trigger('news', 'said', { n: 1 });
      await one.heard('news', 'said', { n: 1 });
      await one.close();
    });
  }
});
