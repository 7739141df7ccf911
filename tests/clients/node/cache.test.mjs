// Cache channels through pusher-js: the last event for whoever comes later, or a miss.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import nacl from 'tweetnacl';

import { heard, subscribed } from './clients.mjs';
import { stage } from './stage.mjs';
import { next } from './waiting.mjs';

const on = stage();

for (const [prefix, user] of [['cache-', undefined], ['private-cache-', 'ann'], ['presence-cache-', 'ann']]) {
  test(`${prefix}: the last event reaches whoever subscribes later`, async () => {
    const name = `${prefix}scores`;
    await on.backend.trigger(name, 'old', { n: 1 });
    await on.backend.trigger(name, 'score', { n: 2, text: 'Grüße' });
    const client = await on.clients.pusher({ user });
    const channel = client.subscribe(name);
    const events = heard(channel);
    assert.deepEqual(await next(channel, 'score'), { n: 2, text: 'Grüße' });
    assert.equal(channel.subscribed, true);
    const fence = next(channel, 'fence');
    await on.backend.trigger(name, 'fence', {});
    await fence;
    assert.deepEqual(events.map(([event]) => event), ['score', 'fence']);
  });

  test(`${prefix}: an empty channel says so`, async () => {
    const client = await on.clients.pusher({ user });
    const channel = client.subscribe(`${prefix}empty`);
    await next(channel, 'pusher:cache_miss');
    assert.equal(channel.subscribed, true);
  });
}

test('a sealed event is kept as it was sealed', async () => {
  const name = 'private-encrypted-cache-vault';
  await on.backend.trigger(name, 'sealed', { n: 3 });
  const client = await on.clients.pusher({ user: 'ann', nacl });
  assert.deepEqual(await next(client.subscribe(name), 'sealed'), { n: 3 });
});

test('whispers are not kept', async () => {
  const name = 'private-cache-whispers';
  const ann = await subscribed(await on.clients.pusher({ user: 'ann' }), name);
  const ben = await subscribed(await on.clients.pusher({ user: 'ben' }), name);
  const arrived = next(ben, 'client-typing');
  ann.trigger('client-typing', {});
  await arrived;
  const late = await on.clients.pusher({ user: 'cleo' });
  await next(late.subscribe(name), 'pusher:cache_miss');
});

test('the API tells what is kept', async () => {
  await on.backend.trigger('cache-told', 'e', 'kept text');
  const params = { info: 'cache' };
  const full = await (await on.backend.get({ path: '/channels/cache-told', params })).json();
  assert.equal(full.cache.data, 'kept text');
  assert.ok(full.cache.ttl > 0);
  const empty = await (await on.backend.get({ path: '/channels/cache-nothing', params })).json();
  assert.equal(empty.cache, null);
});
