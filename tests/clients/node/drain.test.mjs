// A server that is told to stop, and pusher-js clients that must be back, with all they were
// subscribed to, as soon as its successor listens on the same port.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Application } from './application.mjs';
import { backend, Clients, closing, connected, subscribed } from './clients.mjs';
import { Server } from './server.mjs';
import { next, until } from './waiting.mjs';

test('clients are closed with 4200 and come back to the next server', async (t) => {
  const first = await Server.start();
  const application = await Application.start(first);
  const clients = new Clients(first, application);
  let second;
  t.after(async () => {
    clients.close();
    await application.stop();
    await second?.stop();
  });

  const ann = await clients.pusher({ user: 'ann' });
  const room = await subscribed(ann, 'presence-drain');
  const guests = await Promise.all([1, 2, 3, 4].map(() => clients.pusher()));
  await Promise.all(guests.map((guest) => subscribed(guest, 'drain')));
  const all = [ann, ...guests];
  const before = all.map((client) => client.connection.socket_id);

  const closings = all.map(closing);
  await first.stop();
  assert.deepEqual((await Promise.all(closings)).map(({ code }) => code), all.map(() => 4200));

  second = await Server.start({ port: first.port });
  for (const client of all) await connected(client, 60_000);
  all.forEach((client, index) => assert.notEqual(client.connection.socket_id, before[index]));
  await until('the presence channel is joined again', () => room.subscribed);
  assert.equal(room.members.count, 1);

  const sdk = backend(second);
  await until('all are subscribed again', async () => {
    const answer = await sdk.get({ path: '/channels/drain', params: { info: 'subscription_count' } });
    return (await answer.json()).subscription_count === guests.length;
  });
  const arrived = guests.map((guest) => next(guest.channel('drain'), 'e'));
  await sdk.trigger('drain', 'e', { n: 1 });
  for (const data of await Promise.all(arrived)) assert.deepEqual(data, { n: 1 });
});
