// Webhooks as the npm `pusher` SDK takes them: it checks content type, key and signature of what arrives.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';

import Pusher from 'pusher';
import PusherClient from 'pusher-js';

import { Server } from './server.mjs';
import { until } from './waiting.mjs';

const requests = [];
let endpoint;
let server;

before(async () => {
  endpoint = createServer((request, response) => {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', () => {
      const rawBody = Buffer.concat(chunks).toString();
      requests.push({ headers: request.headers, rawBody });
      response.end();
    });
  });
  await new Promise((listening) => endpoint.listen(0, '127.0.0.1', listening));
  const url = `http://127.0.0.1:${endpoint.address().port}/`;
  server = await Server.start({ app: `\n[[apps.webhooks]]\nurl = "${url}"\n` });
});

after(async () => {
  await server?.stop();
  endpoint?.closeAllConnections();
  endpoint?.close();
});

test('W09: the SDK takes a webhook for genuine and reads its events', async () => {
  const backend = new Pusher({ appId: server.id, key: server.key, secret: server.secret });
  const client = new PusherClient(server.key, {
    wsHost: server.host,
    wsPort: server.port,
    forceTLS: false,
    enabledTransports: ['ws'],
    cluster: '',
  });
  try {
    client.subscribe('hooked');
    await until('a webhook arrives', () => requests.length > 0);
  } finally {
    client.disconnect();
  }
  const [{ headers, rawBody }] = requests;
  const webhook = backend.webhook({ headers, rawBody });
  assert.equal(webhook.isValid(), true);
  assert.deepEqual(webhook.getEvents(), [{ name: 'channel_occupied', channel: 'hooked' }]);
  assert.ok(Math.abs(webhook.getTime() - Date.now()) < 60_000);
  const forged = backend.webhook({ headers, rawBody: rawBody.replace('hooked', 'forged') });
  assert.equal(forged.isValid(), false);
});
