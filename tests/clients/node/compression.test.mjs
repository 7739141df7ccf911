// WebSocket clients that negotiate permessage-deflate: what they hear is what was published, whichever form it came
// in, and what they compress is read. Browsers are in browser.test.mjs.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { WebSocket as Undici } from 'undici';
import Ws from 'ws';

import { stage } from './stage.mjs';
import { until } from './waiting.mjs';

const on = stage({ app: 'compression = true\nclient_events = "members"' });

/** Like JSON in that much of it repeats. */
const texts = [10, 511, 600, 1500, 13_000, 66_000, 90_000].map((size) =>
  Array.from({ length: Math.ceil(size / 40) }, (_, n) => `{"id":${n},"name":"Grüße ${n * n} 🚀"},`).join('').slice(0, size),
);

/** A figure of the app's, from the page that Prometheus reads. */
async function figure(name) {
  const page = await (await fetch(`${on.server.origin}/metrics`)).text();
  return Number(page.match(new RegExp(`^fanfare_${name}\\{app="${on.server.id}"\\} (\\S+)$`, 'm'))[1]);
}

for (const [name, Library, options] of [
  ['ws', Ws, [{ perMessageDeflate: { threshold: 0 } }]],
  ['ws with small windows', Ws, [{ perMessageDeflate: { threshold: 0, clientMaxWindowBits: 9 } }]],
  ['undici', Undici, []],
]) {
  test(`${name} speaks it`, async (t) => {
    const url = `ws://${on.server.host}:${on.server.port}/app/${on.server.key}?protocol=7`;
    const socket = new Library(url, ...options);
    t.after(() => socket.close());
    const heard = [];
    socket.addEventListener('message', ({ data }) => heard.push(JSON.parse(data)));
    const hears = (event) => until(event, () => heard.find((one) => one.event === event));
    await hears('pusher:connection_established');
    assert.match(`${socket.extensions}`, /permessage-deflate/);
    assert.ok((await figure('compressed_connections')) >= 1);
    const channel = `shapes-${name.replaceAll(' ', '-')}`;
    socket.send(JSON.stringify({ event: 'pusher:subscribe', data: { channel, padding: 'x'.repeat(2000) } }));
    await hears('pusher_internal:subscription_succeeded');
    const before = await figure('compressed_bytes_total');
    for (const text of texts) await on.backend.trigger(channel, 'e', text);
    await until('all have come', () => heard.filter(({ event }) => event === 'e').length === texts.length);
    assert.deepEqual(heard.filter(({ event }) => event === 'e').map(({ data }) => data), texts);
    const sent = (await figure('compressed_bytes_total')) - before;
    assert.ok(sent > 0 && sent < 60_000, `${sent} bytes for 170,000`);
  });
}
