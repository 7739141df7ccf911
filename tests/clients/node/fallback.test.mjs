// pusher-js as an app has it, through a proxy that cuts WebSockets: it must fall back by itself.

import assert from 'node:assert/strict';
import { createServer, request } from 'node:http';
import { test } from 'node:test';

import Pusher from 'pusher-js';

import { address, connected, subscribed } from './clients.mjs';
import { stage } from './stage.mjs';
import { next } from './waiting.mjs';

const on = stage();

test('falls back to streaming within ten seconds where WebSockets are cut', async (t) => {
  const proxy = createServer((incoming, outgoing) => {
    const { method, url: path, headers } = incoming;
    const { host, port } = on.server;
    const onward = request({ host, port, method, path, headers }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      answer.pipe(outgoing);
    });
    onward.on('error', () => outgoing.destroy());
    outgoing.on('close', () => onward.destroy());
    incoming.pipe(onward);
  });
  proxy.on('upgrade', (_, socket) => socket.destroy());
  await new Promise((listening) => proxy.listen(0, '127.0.0.1', listening));
  const { port } = proxy.address();
  const client = new Pusher(on.server.key, {
    ...address(on.server),
    wsPort: port,
    httpPort: port,
    enabledTransports: ['ws', 'wss', 'xhr_streaming', 'xhr_polling'],
  });
  t.after(() => {
    client.disconnect();
    proxy.close();
    proxy.closeAllConnections();
  });
  await connected(client, 10_000);
  assert.equal(client.connection.connection.transport.name, 'xhr_streaming');
  const channel = await subscribed(client, 'news');
  const arrived = next(channel, 'posted');
  await on.backend.trigger('news', 'posted', { n: 1 });
  assert.deepEqual(await arrived, { n: 1 });
});
