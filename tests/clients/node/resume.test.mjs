// Stock pusher-js and Echo with `wsPath: '/resume/' + token` over a link that is cut again and again: every event
// arrives, in order, and twice only if no answered ping covered it.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, test } from 'node:test';

import { Application } from './application.mjs';
import { backend, Clients, connected, subscribed } from './clients.mjs';
import { Link } from './link.mjs';
import { Server } from './server.mjs';
import { next, until } from './waiting.mjs';

const CUTS = 6;
const EVENTS = 400;

let server, application, clients, link;
before(async () => {
  server = await Server.start({ app: 'resume = "2m"' });
  application = await Application.start(server);
  clients = new Clients(server, application);
  link = await Link.open(server.port);
});
after(async () => {
  clients.close();
  link.close();
  await application.stop();
  await server.stop();
});

const token = () => `${Math.floor(Date.now() / 1000)}-${randomUUID()}`;

for (const [name, user] of [['public-news', undefined], ['private-news', 'ann'], ['presence-news', 'ann']]) {
  test(`nothing is missed on ${name}`, async () => {
    const options = { wsPort: link.port, wsPath: `/resume/${token()}`, activityTimeout: 10_000 };
    const client = await clients.pusher({ user, ...options });
    const channel = await subscribed(client, name);
    const heard = [];
    let gaps = 0;
    channel.bind('tick', ({ n }) => heard.push(n));
    channel.bind('resume:gap', () => (gaps += 1));

    const sdk = backend(server);
    const step = Math.floor(EVENTS / (CUTS + 1));
    for (let n = 0; n < EVENTS; n += 1) {
      await sdk.trigger(name, 'tick', { n });
      if (n % step === step - 1 && n < step * CUTS) {
        link.cut();
        // Some events fall into the time without a connection, some into that of the next one.
        if (n % 2) await connected(client);
      }
    }
    await connected(client, 60_000);
    await until('the last event', () => heard.at(-1) === EVENTS - 1);

    assert.equal(gaps, 0);
    const first = [...new Set(heard)];
    assert.deepEqual(first, [...Array(EVENTS).keys()], 'all, in the order in which they were published');
    // What comes again comes in one piece: from some event that was not acknowledged on.
    for (let at = 1; at < heard.length; at += 1) {
      assert.ok(heard[at] <= Math.max(...heard.slice(0, at)) + 1, `${heard[at]} after ${heard[at - 1]}`);
    }
  });
}

test('Echo comes back by its one option', async () => {
  const options = { wsPort: link.port, wsPath: `/resume/${token()}` };
  const echo = await clients.echo({ user: 'ann', ...options });
  const channel = echo.private('orders');
  const raw = echo.connector.pusher.channel('private-orders');
  if (!raw.subscribed) await next(raw, 'pusher:subscription_succeeded');
  const heard = [];
  channel.listen('.shipped', ({ n }) => heard.push(n));
  const sdk = backend(server);
  await sdk.trigger('private-orders', 'shipped', { n: 1 });
  await until('the first', () => heard.length === 1);
  link.isUp = false;
  link.cut();
  await sdk.trigger('private-orders', 'shipped', { n: 2 });
  link.isUp = true;
  await until('the second', () => heard.includes(2), 60_000);
  assert.deepEqual([...new Set(heard)], [1, 2]);
});

test('a page that is older than what is remembered is told to fetch anew', async () => {
  const old = `${Math.floor(Date.now() / 1000) - 3600}-${randomUUID()}`;
  const client = await clients.pusher({ wsPort: link.port, wsPath: `/resume/${old}` });
  const channel = client.subscribe('public-old');
  await next(channel, 'resume:gap');
});
