// pusher-js of earlier years, still in the bundles of apps that nobody rebuilds: 7.6 and 4.4.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import Pusher4 from 'pusher-js-4';
import Pusher7 from 'pusher-js-7';

import { subscribed } from './clients.mjs';
import { stage } from './stage.mjs';
import { next } from './waiting.mjs';

// Shorter than usual, for a client that polls and goes between two polls is missed only after it.
const on = stage({ app: 'activity_timeout = 15' });

for (const [version, library] of [['7.6', Pusher7], ['4.4', Pusher4]]) {
  describe(`pusher-js ${version}`, () => {
    // The options of those years: no `channelAuthorization`, and 4.4 says `encrypted` for TLS.
    const client = (user) =>
      on.clients.pusher({
        library,
        encrypted: false,
        disableStats: true,
        signing: {
          authEndpoint: on.application.channelEndpoint,
          auth: { headers: { Authorization: `Bearer ${on.application.token(user)}` } },
        },
      });

    test('subscribes to every kind of channel', async () => {
      const ann = await client('ann');
      for (const kind of ['', 'private-', 'presence-']) {
        const channel = await subscribed(ann, `${kind}old-${version}`);
        const arrived = next(channel, 'e');
        await on.backend.trigger(channel.name, 'e', { text: 'Grüße 🚀' });
        assert.deepEqual(await arrived, { text: 'Grüße 🚀' });
      }
    });

    test('sees members come and go, and whispers', async () => {
      const name = `presence-members-${version}`;
      const [ann, ben] = [await client('ann'), await client('ben')];
      const room = await subscribed(ann, name);
      const joining = next(room, 'pusher:member_added');
      const his = await subscribed(ben, name);
      assert.equal((await joining).id, '2');
      assert.equal(his.members.count, 2);
      const whisper = next(his, 'client-typing');
      room.trigger('client-typing', { n: 1 });
      assert.deepEqual(await whisper, { n: 1 });
      const leaving = next(room, 'pusher:member_removed', 45_000);
      ben.disconnect();
      assert.equal((await leaving).id, '2');
    });
  });
}
