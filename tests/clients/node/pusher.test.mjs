// pusher-js against the server, the npm `pusher` SDK behind it: channels of every kind, what arrives
// and what must not.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import nacl from 'tweetnacl';
import Pusher from 'pusher-js';

import { SECRET } from './application.mjs';
import { address, connected, frames, heard, subscribed } from './clients.mjs';
import { stage } from './stage.mjs';
import { next, nextWithMetadata, until } from './waiting.mjs';

// Shorter than usual, for a client that polls and goes between two polls is missed only after it.
const on = stage({ app: 'activity_timeout = 15' });

/** Triggers a last event and waits for it: whatever was sent before has arrived by then. */
async function fence(channel) {
  const done = next(channel, 'fence');
  await on.backend.trigger(channel.name, 'fence', {});
  await done;
}

describe('connecting', () => {
  test('establishes a connection with a socket id', async () => {
    const client = await on.clients.pusher();
    assert.match(client.connection.socket_id, /^\d+\.\d+$/);
    const other = await on.clients.pusher();
    assert.notEqual(client.connection.socket_id, other.connection.socket_id);
  });

  test('is refused with 4001 for a key that no app has', async () => {
    const client = new Pusher('no-such-key', address(on.server));
    const errors = [];
    client.connection.bind('error', (error) => errors.push((error.data ?? error.error?.data)?.code));
    await until('the connection is given up', () => client.connection.state === 'disconnected');
    assert.ok(errors.length > 0 && errors.every((code) => code === 4001), `${errors}`);
    client.disconnect();
  });
});

describe('public channels', () => {
  test('receive what the backend triggers', async () => {
    const channel = await subscribed(await on.clients.pusher(), 'news');
    const arrived = next(channel, 'posted');
    const answer = await on.backend.trigger('news', 'posted', { id: 7, tags: ['a', null] });
    assert.equal(answer.status, 200);
    assert.deepEqual(await answer.json(), {});
    assert.deepEqual(await arrived, { id: 7, tags: ['a', null] });
  });

  test('receive data byte for byte', async () => {
    const client = await on.clients.pusher();
    const channel = await subscribed(client, 'bytes');
    const raw = frames(client);
    const samples = [
      'plain text',
      'Grüße, 你好, עברית, \u2028 \u2029 \ufeff',
      '🚀👩‍👩‍👧‍👦 and a null: \u0000',
      'quotes " and \\ backslashes \\" / slashes',
      'lines\r\nand\ttabs \u007f \u0001',
      '{"spaces" : 1.0, "big": 12345678901234567890, "e": 1e400, "esc": "\\u00e9\\/"}',
      '[1,\n 2]',
      '"a JSON string"',
      '   {"padded":true}   ',
      '{"cut": ',
      '',
      'x'.repeat(100 * 1024),
    ];
    for (const sample of samples) await on.backend.trigger('bytes', 'sample', sample);
    await fence(channel);
    const events = raw.map((text) => JSON.parse(text)).filter(({ event }) => event === 'sample');
    assert.deepEqual(events.map(({ data }) => data), samples);
    for (const event of events) assert.deepEqual(Object.keys(event), ['event', 'channel', 'data']);
  });

  test('are left by unsubscribing and joined again', async () => {
    const client = await on.clients.pusher();
    const stays = await subscribed(client, 'stays');
    const left = await subscribed(client, 'left');
    const raw = frames(client);
    client.unsubscribe('left');
    await until('nobody is there', async () => {
      const answer = await on.backend.get({ path: '/channels/left' });
      return (await answer.json()).occupied === false;
    });
    await on.backend.trigger(['left', 'stays'], 'e', {});
    await fence(stays);
    assert.deepEqual(raw.filter((text) => text.includes('"left"')), []);

    const again = await subscribed(client, 'left');
    const arrived = next(again, 'e');
    await on.backend.trigger('left', 'e', { back: true });
    assert.deepEqual(await arrived, { back: true });
  });

  test('spare the socket that toOthers names', async () => {
    const [sender, other] = [await on.clients.pusher(), await on.clients.pusher()];
    const own = await subscribed(sender, 'others');
    const theirs = await subscribed(other, 'others');
    const mine = heard(own);
    const arrived = next(theirs, 'e');
    const { socket_id } = sender.connection;
    await on.backend.trigger('others', 'e', { n: 1 }, { socket_id });
    assert.deepEqual(await arrived, { n: 1 });
    await fence(own);
    assert.deepEqual(mine.map(([event]) => event), ['fence']);
  });

  test('carry one trigger to 100 channels', async () => {
    const client = await on.clients.pusher();
    const names = Array.from({ length: 100 }, (_, index) => `hundred-${index}`);
    const channels = await Promise.all(names.map((name) => subscribed(client, name)));
    const arrived = Promise.all(channels.map((channel) => next(channel, 'all')));
    await on.backend.trigger(names, 'all', 'to all');
    assert.deepEqual(await arrived, names.map(() => 'to all'));
  });
});

describe('private channels', () => {
  test('receive what the backend triggers, once the application has signed', async () => {
    const channel = await subscribed(await on.clients.pusher({ user: 'ann' }), 'private-orders');
    const arrived = next(channel, 'shipped');
    await on.backend.trigger('private-orders', 'shipped', { order: 1 });
    assert.deepEqual(await arrived, { order: 1 });
  });

  test('are refused where the application refuses', async () => {
    const client = await on.clients.pusher({ user: 'ann' });
    const error = await next(client.subscribe(`private-${SECRET}`), 'pusher:subscription_error');
    assert.equal(error.status, 403);
    assert.equal(client.connection.state, 'connected');
  });

  test('are refused by the server where the signature is wrong', async () => {
    const client = await on.clients.pusher({
      channelAuthorization: {
        customHandler: (_, callback) => callback(null, { auth: `${on.server.key}:${'0'.repeat(64)}` }),
      },
    });
    const error = await next(client.subscribe('private-forged'), 'pusher:subscription_error');
    assert.equal(error.type, 'AuthError');
    assert.equal(error.status, 401);
    assert.equal(client.connection.state, 'connected');
  });

  test('are joined through a custom handler with a bearer token', async () => {
    const client = await on.clients.pusher({
      channelAuthorization: {
        customHandler: async ({ socketId, channelName }, callback) => {
          const answer = await fetch(on.application.channelEndpoint, {
            method: 'POST',
            headers: { Authorization: `Bearer ${on.application.token('ben')}` },
            body: new URLSearchParams({ socket_id: socketId, channel_name: channelName }),
          });
          callback(answer.ok ? null : new Error(answer.statusText), await answer.json());
        },
      },
    });
    const channel = await subscribed(client, 'private-custom');
    const arrived = next(channel, 'e');
    await on.backend.trigger('private-custom', 'e', {});
    assert.deepEqual(await arrived, {});
  });

  test('carry whispers to everyone but the sender', async () => {
    const [ann, ben] = [
      await subscribed(await on.clients.pusher({ user: 'ann' }), 'private-chat'),
      await subscribed(await on.clients.pusher({ user: 'ben' }), 'private-chat'),
    ];
    const own = heard(ann);
    const arrived = nextWithMetadata(ben, 'client-typing');
    assert.ok(ann.trigger('client-typing', { text: 'Änn "☕"', n: 1.5 }));
    const [data, metadata] = await arrived;
    assert.deepEqual(data, { text: 'Änn "☕"', n: 1.5 });
    assert.equal(metadata?.user_id, undefined);
    await fence(ann);
    assert.deepEqual(own.map(([event]) => event), ['fence']);
  });
});

describe('encrypted channels', () => {
  test('pass on what the backend sealed and pusher-js opens', async () => {
    const client = await on.clients.pusher({ user: 'ann', nacl });
    const channel = await subscribed(client, 'private-encrypted-letters');
    const raw = frames(client);
    const arrived = next(channel, 'sealed');
    await on.backend.trigger('private-encrypted-letters', 'sealed', { secret: 'Grüße 🚀' });
    assert.deepEqual(await arrived, { secret: 'Grüße 🚀' });
    const sealed = JSON.parse(raw.find((text) => text.includes('"sealed"')));
    assert.deepEqual(Object.keys(JSON.parse(sealed.data)), ['nonce', 'ciphertext']);
  });
});

describe('presence channels', () => {
  test('show who is there, who joins and who leaves', async () => {
    const ann = await on.clients.pusher({ user: 'ann' });
    const room = await subscribed(ann, 'presence-room');
    assert.equal(room.members.count, 1);
    assert.deepEqual(room.members.me, { id: '1', info: on.application.user('ann').user_info });

    const joining = next(room, 'pusher:member_added');
    const ben = await on.clients.pusher({ user: 'ben' });
    const his = await subscribed(ben, 'presence-room');
    assert.deepEqual(await joining, { id: '2', info: { name: 'Ben' } });
    assert.equal(his.members.count, 2);
    assert.deepEqual(his.members.get('1').info, on.application.user('ann').user_info);

    const leaving = next(room, 'pusher:member_removed');
    ben.unsubscribe('presence-room');
    assert.deepEqual(await leaving, { id: '2', info: { name: 'Ben' } });
    assert.equal(room.members.count, 1);
  });

  test('count two tabs of a user as one member', async () => {
    const watcher = await subscribed(await on.clients.pusher({ user: 'cleo' }), 'presence-tabs');
    const notices = [];
    for (const event of ['pusher:member_added', 'pusher:member_removed']) {
      watcher.bind(event, ({ id }) => notices.push(`${event} ${id}`));
    }
    const first = await on.clients.pusher({ user: 'ann' });
    const second = await on.clients.pusher({ user: 'ann' });
    await subscribed(first, 'presence-tabs');
    const tab = await subscribed(second, 'presence-tabs');
    assert.equal(tab.members.count, 2);
    first.disconnect();
    const gone = 45_000;
    await until('one connection is left of two', async () => {
      const info = { info: 'subscription_count' };
      const answer = await on.backend.get({ path: '/channels/presence-tabs', params: info });
      return (await answer.json()).subscription_count === 2;
    }, gone);
    await fence(watcher);
    assert.deepEqual(notices, ['pusher:member_added 1']);
    const removed = next(watcher, 'pusher:member_removed', gone);
    second.disconnect();
    await removed;
    assert.deepEqual(notices, ['pusher:member_added 1', 'pusher:member_removed 1']);
  });

  test('carry whispers with the id of the sender', async () => {
    const ann = await subscribed(await on.clients.pusher({ user: 'ann' }), 'presence-whispers');
    const ben = await subscribed(await on.clients.pusher({ user: 'ben' }), 'presence-whispers');
    const arrived = nextWithMetadata(ben, 'client-typing');
    ann.trigger('client-typing', { on: true });
    assert.deepEqual(await arrived, [{ on: true }, { user_id: '1' }]);
  });
});

describe('the connection', () => {
  test('survives what it should not have sent', async () => {
    const client = await on.clients.pusher();
    const channel = await subscribed(client, 'sturdy');
    const error = next(client.connection, 'error');
    client.connection.connection.send('{"event": no JSON');
    assert.equal((await error).data.code, 4200);
    await fence(channel);
    await connected(client);
  });
});
