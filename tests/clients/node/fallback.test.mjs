// pusher-js as an app has it, through a proxy that cuts WebSockets: it must fall back by itself.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import Pusher from 'pusher-js';

import { address, connected, subscribed } from './clients.mjs';
import { cutsWebSockets } from './cutting.mjs';
import { stage } from './stage.mjs';
import { next } from './waiting.mjs';

const on = stage();

test('falls back to streaming where WebSockets are cut', async (t) => {
  const proxy = await cutsWebSockets(() => on.server);
  const { port } = proxy;
  const client = new Pusher(on.server.key, {
    ...address(on.server),
    wsPort: port,
    httpPort: port,
    enabledTransports: ['ws', 'wss', 'xhr_streaming', 'xhr_polling'],
  });
  t.after(() => {
    client.disconnect();
    proxy.close();
  });
  await connected(client);
  assert.equal(client.connection.connection.transport.name, 'xhr_streaming');
  const channel = await subscribed(client, 'news');
  const arrived = next(channel, 'posted');
  await on.backend.trigger('news', 'posted', { n: 1 });
  assert.deepEqual(await arrived, { n: 1 });
});
