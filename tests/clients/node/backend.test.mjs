// The npm `pusher` SDK as the backend of an app: batches, `info`, and questions about channels.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { backend, heard, subscribed } from './clients.mjs';
import { stage } from './stage.mjs';
import { next } from './waiting.mjs';

const on = stage();

async function ask(path, params) {
  const answer = await on.backend.get({ path, params });
  assert.equal(answer.status, 200);
  return answer.json();
}

describe('triggering', () => {
  test('a batch arrives whole and in order', async () => {
    const client = await on.clients.pusher();
    const [a, b] = [await subscribed(client, 'batch-a'), await subscribed(client, 'batch-b')];
    const [heardA, heardB] = [heard(a), heard(b)];
    const last = next(b, 'e9');
    const batch = Array.from({ length: 10 }, (_, index) => ({
      channel: index % 2 ? 'batch-b' : 'batch-a',
      name: `e${index}`,
      data: { index },
    }));
    const answer = await on.backend.triggerBatch(batch);
    assert.equal(answer.status, 200);
    assert.equal(typeof (await answer.json()), 'object');
    await last;
    assert.deepEqual(heardA.map(([event]) => event), ['e0', 'e2', 'e4', 'e6', 'e8']);
    assert.deepEqual(heardB.map(([event]) => event), ['e1', 'e3', 'e5', 'e7', 'e9']);
  });

  test('a batch of eleven is refused whole', async () => {
    const batch = Array.from({ length: 11 }, () => ({ channel: 'c', name: 'e', data: '' }));
    await assert.rejects(on.backend.triggerBatch(batch), { status: 400 });
  });

  test('answers the counts that info asks for', async () => {
    await subscribed(await on.clients.pusher(), 'counted');
    await subscribed(await on.clients.pusher(), 'counted');
    await subscribed(await on.clients.pusher({ user: 'ann' }), 'presence-counted');
    await subscribed(await on.clients.pusher({ user: 'ann' }), 'presence-counted');
    const one = await on.backend.trigger('counted', 'e', {}, { info: 'subscription_count' });
    assert.deepEqual(await one.json(), { channels: { counted: { subscription_count: 2 } } });
    const info = 'user_count,subscription_count';
    const two = await on.backend.trigger('presence-counted', 'e', {}, { info });
    assert.deepEqual(await two.json(), {
      channels: { 'presence-counted': { user_count: 1, subscription_count: 2 } },
    });
    const batch = await on.backend.triggerBatch([
      { channel: 'counted', name: 'e', data: '', info: 'subscription_count' },
      { channel: 'nobody', name: 'e', data: '' },
      { channel: 'presence-counted', name: 'e', data: '', info: 'user_count' },
    ]);
    assert.deepEqual((await batch.json()).batch, [{ subscription_count: 2 }, {}, { user_count: 1 }]);
  });

  test('refuses a wrong secret with 401', async () => {
    const foreign = backend(on.server, { secret: 'wrong' });
    await assert.rejects(foreign.trigger('c', 'e', {}), { status: 401 });
  });

  test('refuses an unknown app with 404', async () => {
    const lost = backend(on.server, { appId: '999' });
    await assert.rejects(lost.trigger('c', 'e', {}), (error) => {
      assert.equal(error.status, 404);
      assert.equal(JSON.parse(error.body).code, 404);
      return true;
    });
  });
});

describe('asking', () => {
  test('lists the occupied channels', async () => {
    const client = await on.clients.pusher({ user: 'ben' });
    await subscribed(client, 'ask-plain');
    await subscribed(client, 'presence-ask');
    const { channels } = await ask('/channels', { filter_by_prefix: 'ask-' });
    assert.deepEqual(channels, { 'ask-plain': {} });
    const params = { filter_by_prefix: 'presence-ask', info: 'user_count' };
    const presence = await ask('/channels', params);
    assert.deepEqual(presence.channels, { 'presence-ask': { user_count: 1 } });
    const none = await ask('/channels', { filter_by_prefix: 'nobody-is-here' });
    assert.deepEqual(none, { channels: {} });
  });

  test('tells about one channel', async () => {
    await subscribed(await on.clients.pusher({ user: 'ann' }), 'presence-one');
    await subscribed(await on.clients.pusher({ user: 'ann' }), 'presence-one');
    assert.deepEqual(await ask('/channels/presence-one', { info: 'user_count,subscription_count' }), {
      occupied: true,
      user_count: 1,
      subscription_count: 2,
    });
    assert.equal((await ask('/channels/nobody-is-here')).occupied, false);
  });

  test('tells the users of a presence channel', async () => {
    await subscribed(await on.clients.pusher({ user: 'ann' }), 'presence-who');
    await subscribed(await on.clients.pusher({ user: 'ann' }), 'presence-who');
    await subscribed(await on.clients.pusher({ user: 'ben' }), 'presence-who');
    const { users } = await ask('/channels/presence-who/users');
    const byId = (one, other) => one.id.localeCompare(other.id);
    assert.deepEqual(users.sort(byId), [{ id: '1' }, { id: '2' }]);
    await assert.rejects(on.backend.get({ path: '/channels/plain/users' }), { status: 400 });
  });

  test('finds channels whose names need encoding', async () => {
    const name = 'odd=@,.;-_name';
    await subscribed(await on.clients.pusher(), name);
    assert.equal((await ask(`/channels/${encodeURIComponent(name)}`)).occupied, true);
  });
});
