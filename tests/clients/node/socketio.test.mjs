// Pages of laravel-echo-server: Echo of two generations with `broadcaster: 'socket.io'`, on socket.io-client of three, over
// every way that these travel, beside a client of the Pusher protocol and the npm `pusher` SDK. Needs a program that was
// built with the feature `socketio`.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';

import Echo2 from 'laravel-echo';
import { createRequire } from 'node:module';
import { io as io4 } from 'socket.io-client';

import { SECRET } from './application.mjs';
import { backend, subscribed } from './clients.mjs';
import { freePort, Server } from './server.mjs';
import { socketIoStage } from './stage.mjs';
import { next, until } from './waiting.mjs';

const require = createRequire(import.meta.url);
const Echo1 = require('laravel-echo-1');
const io2 = require('socket.io-client-2');
const { io: io3 } = require('socket.io-client-3');

const open = [];
// They go before the server does.
after(() => {
  for (const echo of open) echo.disconnect();
});
const on = socketIoStage();

/** A connected Echo as the pages of laravel-echo-server set it up. */
async function echo({ Echo = Echo2, client = io4, transports, user, ...options } = {}) {
  const headers = user ? { Authorization: `Bearer ${on.application.token(user)}` } : {};
  const made = new (Echo.default ?? Echo)({
    broadcaster: 'socket.io',
    host: on.server.origin,
    client,
    forceNew: true,
    auth: { headers },
    ...(transports ? { transports } : {}),
    ...options,
  });
  open.push(made);
  await until('connected', () => made.connector.socket.connected);
  return made;
}

/** Resolves with what Echo hands to the callback that `listen` takes. */
function told(listen) {
  const heard = [];
  listen((data) => heard.push(data === undefined ? true : data));
  return until(`${listen}`, () => heard.length > 0 && { heard }).then(() => heard[0]);
}

/** Waits until the channel has so many subscriptions, for Echo is not told of its own. */
function joined(name, count = 1) {
  return until(`${count} in ${name}`, async () => {
    const path = `/channels/${encodeURIComponent(name)}`;
    const answer = await on.backend.get({ path, params: { info: 'subscription_count' } });
    return ((await answer.json()).subscription_count ?? 0) === count;
  });
}

const LIBRARIES = { 2: io2, 3: io3, 4: io4 };
const WAYS = { polling: ['polling'], websocket: ['websocket'], 'polling, then websocket': undefined };

for (const [echoVersion, Echo] of Object.entries({ 1: Echo1, 2: Echo2 })) {
  for (const [version, client] of Object.entries(LIBRARIES)) {
    for (const [way, transports] of Object.entries(WAYS)) {
      describe(`Echo ${echoVersion}, socket.io-client ${version}, ${way}`, () => {
        const page = (user, options) => echo({ Echo, client, transports, user, ...options });
        const named = (name) => `${name}-${echoVersion}-${version}-${way.length}`;

        test('a public channel, and toOthers', async () => {
          const name = named('orders');
          const [ann, ben] = [await page(), await page()];
          const own = [];
          ann.channel(name).listen('.e', (data) => own.push(data));
          const shipped = told((callback) => ben.channel(name).listen('OrderShipped', callback));
          await joined(name, 2);
          assert.match(ann.socketId(), /^\d+\.\d+$/);
          await on.backend.trigger(name, 'App\\Events\\OrderShipped', { order: { id: 4 } });
          assert.deepEqual(await shipped, { order: { id: 4 } });
          const theirs = told((callback) => ben.channel(name).listen('.e', callback));
          const fence = told((callback) => ann.channel(name).listen('.fence', callback));
          await on.backend.trigger(name, 'e', { text: 'Grüße 🚀' }, { socket_id: ann.socketId() });
          await on.backend.trigger(name, 'fence', 'plain text');
          assert.deepEqual(await theirs, { text: 'Grüße 🚀' });
          assert.equal(await fence, 'plain text');
          assert.deepEqual(own, []);
          ann.leave(name);
          ben.leave(name);
          await joined(name, 0);
        });

        test('a private channel: refusals, notifications, whispers', async () => {
          const name = named('user.1');
          const [ann, ben] = [await page('ann'), await page('ben')];
          const refused = new Promise((tell) => {
            ann.connector.socket.on('subscription_error', (...said) => tell(said));
          });
          ann.private(SECRET);
          assert.deepEqual(await refused, [`private-${SECRET}`, 403]);
          const notice = told((callback) => ann.private(name).notification(callback));
          const echoed = [];
          ann.private(name).listenForWhisper('typing', (data) => echoed.push(data));
          const whisper = told((callback) => ben.private(name).listenForWhisper('typing', callback));
          await joined(`private-${name}`, 2);
          const type = 'Illuminate\\Notifications\\Events\\BroadcastNotificationCreated';
          await on.backend.trigger(`private-${name}`, type, { id: 'x', message: 'hi' });
          assert.deepEqual(await notice, { id: 'x', message: 'hi' });
          ann.private(name).whisper('typing', { name: 'Änn' });
          assert.deepEqual(await whisper, { name: 'Änn' });
          assert.deepEqual(echoed, []);
          ann.leave(name);
          ben.leave(name);
          await joined(`private-${name}`, 0);
        });

        test('one presence channel with clients of the Pusher protocol', async () => {
          const name = named('room');
          const { user_info: info } = on.application.user('ann');
          const pusher = await on.clients.pusher({ user: 'cleo' });
          const room = await subscribed(pusher, `presence-${name}`);
          const added = next(room, 'pusher:member_added');
          const ann = await page('ann');
          const here = await told((callback) => ann.join(name).here(callback));
          assert.deepEqual(here, [{ name: 'Cleo' }, info]);
          assert.deepEqual((await added).info, info);
          const joining = told((callback) => ann.join(name).joining(callback));
          const ben = await page('ben');
          const third = await told((callback) => ben.join(name).here(callback));
          assert.deepEqual(third, [{ name: 'Cleo' }, info, { name: 'Ben' }]);
          assert.deepEqual(await joining, { name: 'Ben' });
          const leaving = told((callback) => ann.join(name).leaving(callback));
          const removed = next(room, 'pusher:member_removed');
          ben.disconnect();
          assert.deepEqual(await leaving, { name: 'Ben' });
          assert.equal((await removed).id, '2');
          const whisper = next(room, 'client-typing');
          ann.join(name).whisper('typing', { n: 1 });
          assert.deepEqual(await whisper, { n: 1 });
          pusher.disconnect();
          ann.disconnect();
          await joined(`presence-${name}`, 0);
        });
      });
    }
  }
}

test('cookies of the page go to the backend', async () => {
  const cookie = { Cookie: `session=${on.application.token('ben')}` };
  const ben = await echo({ transports: ['polling'], extraHeaders: cookie });
  const here = await told((callback) => ben.join('cookies').here(callback));
  assert.deepEqual(here, [{ name: 'Ben' }]);
});

test('what Laravel’s Redis broadcaster answers is understood', async () => {
  const { answer } = on.application;
  on.application.answer = async () => ({
    status: 200,
    body: { channel_data: { user_id: 7, user_info: { name: 'Dan' } } },
  });
  try {
    const dan = await echo();
    const here = await told((callback) => dan.join('redis').here(callback));
    assert.deepEqual(here, [{ name: 'Dan' }]);
    on.application.answer = async () => ({ status: 200, body: true });
    dan.private('redis');
    await joined('private-redis');
  } finally {
    on.application.answer = answer;
  }
});

test('a user whose connections are terminated stays away', async () => {
  const page = await echo({ user: 'ben' });
  await told((callback) => page.join('terminated').here(callback));
  const lost = new Promise((tell) => page.connector.socket.on('disconnect', tell));
  await on.backend.post({ path: '/users/2/terminate_connections', body: {} });
  assert.equal(await lost, 'io server disconnect');
  assert.equal(page.connector.socket.active ?? false, false, 'it does not come back by itself');
});

for (const [version, client] of Object.entries(LIBRARIES)) {
  test(`pages with socket.io-client ${version} outlive a restart of the server`, async () => {
    const port = await freePort();
    const start = () => Server.start({ port, app: 'socketio.enabled = true' });
    let server = await start();
    const page = await echo({ client, host: server.origin, reconnectionDelay: 50 });
    const { socket } = page.connector;
    // As docs/migrating-from-laravel-echo-server.md has it: with version 2 Echo does so by itself.
    if (version !== '2') {
      socket.io.on('reconnect', () => {
        for (const channel of Object.values(page.connector.channels)) channel.subscribe();
      });
    }
    const heard = [];
    page.channel('orders').listen('.e', (data) => heard.push(data));
    const lost = new Promise((tell) => socket.on('disconnect', tell));
    await server.stop();
    assert.notEqual(await lost, 'io server disconnect');
    server = await start();
    try {
      await until('an event after the restart', async () => {
        await backend(server).trigger('orders', 'e', { n: 1 });
        return heard.length > 0;
      });
    } finally {
      page.disconnect();
      await server.stop();
    }
  });
}
