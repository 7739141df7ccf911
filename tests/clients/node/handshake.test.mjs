// WebSocket clients that compare the answer to their handshake to the letter, while the server stops: a `Connection`
// of `Upgrade, close` was thrown away by all of them, as a handshake that failed.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { WebSocket as Undici } from 'undici';
import Ws from 'ws';

import { Server } from './server.mjs';
import { until } from './waiting.mjs';

/** What a socket hears, and how it is closed; an error in the place of that is no answer. */
function conversation(Library, url, options) {
  return new Promise((done, failed) => {
    const socket = new Library(url, ...options);
    const texts = [];
    socket.addEventListener('message', ({ data }) => texts.push(JSON.parse(data)));
    socket.addEventListener('error', (event) => failed(event.error ?? new Error(event.message)));
    socket.addEventListener('close', ({ code, reason }) => done({ texts, code, reason }));
  });
}

for (const [name, Library, options] of [
  ['undici', Undici, []],
  ['ws', Ws, []],
  // Who says that it will close is answered no otherwise.
  ['ws without keep-alive', Ws, [{ headers: { Connection: 'close, Upgrade' } }]],
]) {
  test(`${name} takes the handshake of a server that stops`, async () => {
    const server = await Server.start({ settings: 'workers = 1', grace: '20s' });
    const url = `ws://${server.host}:${server.port}/app/${server.key}?protocol=7`;
    // They are sent away one after the other, forty a second: as long as that takes, the server is there.
    const others = Array.from({ length: 200 }, () => new Ws(url));
    await Promise.all(others.map((other) => new Promise((greeted) => other.once('message', greeted))));
    server.child.kill('SIGTERM');
    await until('it stops', () => /stopping/.test(server.log));
    const message = 'Server is stopping';
    assert.deepEqual(await conversation(Library, url, options), {
      texts: [{ event: 'pusher:error', data: { code: 4100, message } }],
      code: 4100,
      reason: message,
    });
    assert.deepEqual(await server.ended, { code: 0, signal: null }, server.log);
  });
}
