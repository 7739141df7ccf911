// Laravel Echo, as a Laravel app sets it up, once with `broadcaster: 'reverb'` and once with
// `'pusher'`. Presence lists, whispers and refusals are seen through Echo's own words.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { SECRET } from './application.mjs';
import { stage } from './stage.mjs';
import { until } from './waiting.mjs';

const on = stage();

/** Resolves with what Echo hands to the callback that `listen` takes. */
function told(listen) {
  const heard = [];
  listen((data) => heard.push(data === undefined ? true : data));
  return until(`${listen}`, () => heard.length > 0 && { heard }).then(() => heard[0]);
}

const joined = (channel) => told((callback) => channel.subscribed(callback));

for (const broadcaster of ['reverb', 'pusher']) {
  describe(`broadcaster: '${broadcaster}'`, () => {
    const echo = (user, options) => on.clients.echo({ broadcaster, user, ...options });
    const named = (name) => `${broadcaster}-${name}`;

    test('listens to a public channel', async () => {
      const name = named('orders');
      const channel = (await echo()).channel(name);
      await joined(channel);
      const event = told((callback) => channel.listen('OrderShipped', callback));
      const dotted = told((callback) => channel.listen('.order.paid', callback));
      await on.backend.trigger(name, 'App\\Events\\OrderShipped', { order: { id: 4 } });
      await on.backend.trigger(name, 'order.paid', { order: { id: 5 } });
      assert.deepEqual(await event, { order: { id: 4 } });
      assert.deepEqual(await dotted, { order: { id: 5 } });
    });

    test('listens to a private channel and its notifications', async () => {
      const name = named('user.1');
      const channel = (await echo('ann')).private(name);
      await joined(channel);
      const event = told((callback) => channel.listen('.e', callback));
      const notice = told((callback) => channel.notification(callback));
      const type = 'Illuminate\\Notifications\\Events\\BroadcastNotificationCreated';
      await on.backend.trigger(`private-${name}`, 'e', { n: 1 });
      await on.backend.trigger(`private-${name}`, type, { id: 'x', message: 'Grüße' });
      assert.deepEqual(await event, { n: 1 });
      assert.deepEqual(await notice, { id: 'x', message: 'Grüße' });
    });

    test('tells of a refused subscription', async () => {
      const echoOfAnn = await echo('ann');
      const error = await told((callback) => echoOfAnn.private(SECRET).error(callback));
      assert.equal(error.status, 403);
      const guest = await echo();
      const refused = await told((callback) => guest.private(named('guest')).error(callback));
      assert.equal(refused.status, 403);
    });

    test('tells of a signature that the server refuses', async () => {
      const forged = await echo('ann', {
        authorizer: () => ({
          authorize: (_, callback) => callback(null, { auth: `${on.server.key}:${'f'.repeat(64)}` }),
        }),
      });
      const error = await told((callback) => forged.private(named('forged')).error(callback));
      assert.equal(error.status, 401);
    });

    test('joins through a custom authorizer with a bearer token', async () => {
      const authorizer = (channel) => ({
        authorize: (socketId, callback) => {
          fetch(on.application.channelEndpoint, {
            method: 'POST',
            headers: { Authorization: `Bearer ${on.application.token('cleo')}` },
            body: new URLSearchParams({ socket_id: socketId, channel_name: channel.name }),
          })
            .then((answer) => answer.json())
            .then((signed) => callback(null, signed), (error) => callback(error, null));
        },
      });
      const room = (await echo(undefined, { authorizer })).join(named('custom'));
      const here = await told((callback) => room.here(callback));
      assert.deepEqual(here, [{ name: 'Cleo' }]);
    });

    test('sees here, joining and leaving', async () => {
      const name = named('room');
      const room = (await echo('ann')).join(name);
      const { user_info: ann } = on.application.user('ann');
      assert.deepEqual(await told((callback) => room.here(callback)), [ann]);

      const joining = told((callback) => room.joining(callback));
      const ben = await echo('ben');
      const here = await told((callback) => ben.join(name).here(callback));
      assert.deepEqual(here, [ann, { name: 'Ben' }]);
      assert.deepEqual(await joining, { name: 'Ben' });

      const leaving = told((callback) => room.leaving(callback));
      ben.leave(name);
      assert.deepEqual(await leaving, { name: 'Ben' });
    });

    test('whispers to the others only', async () => {
      const name = named('whispers');
      const [sender, other] = [await echo('ann'), await echo('ben')];
      const [ann, ben] = [sender.private(name), other.private(name)];
      await Promise.all([joined(ann), joined(ben)]);
      const echoed = [];
      ann.listenForWhisper('typing', (data) => echoed.push(data));
      const arrived = told((callback) => ben.listenForWhisper('typing', callback));
      ann.whisper('typing', { name: 'Änn' });
      assert.deepEqual(await arrived, { name: 'Änn' });
      const fence = told((callback) => ann.listen('.fence', callback));
      await on.backend.trigger(`private-${name}`, 'fence', {});
      await fence;
      assert.deepEqual(echoed, []);
    });

    test('is spared its own broadcast by toOthers', async () => {
      const name = named('others');
      const [sender, other] = [await echo('ann'), await echo('ben')];
      const [own, theirs] = [sender.channel(name), other.channel(name)];
      await Promise.all([joined(own), joined(theirs)]);
      const mine = [];
      own.listen('.e', (data) => mine.push(data));
      const arrived = told((callback) => theirs.listen('.e', callback));
      await on.backend.trigger(name, 'e', { n: 1 }, { socket_id: sender.socketId() });
      assert.deepEqual(await arrived, { n: 1 });
      const fence = told((callback) => own.listen('.fence', callback));
      await on.backend.trigger(name, 'fence', {});
      await fence;
      assert.deepEqual(mine, []);
    });

    test('leaves a channel in all its forms', async () => {
      const name = named('leave');
      const ann = await echo('ann');
      await joined(ann.channel(name));
      await joined(ann.private(name));
      await joined(ann.join(name));
      ann.leave(name);
      await until('all three are vacant', async () => {
        const answer = await on.backend.get({ path: '/channels' });
        const { channels } = await answer.json();
        return !Object.keys(channels).some((channel) => channel.endsWith(name));
      });
    });
  });
}
