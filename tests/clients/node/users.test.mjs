// Signed-in users through pusher-js and the npm `pusher` SDK: signing in, events to a user, ending a
// user's connections.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { subscribed } from './clients.mjs';
import { stage } from './stage.mjs';
import { next, until } from './waiting.mjs';

const on = stage();

async function signedIn(user) {
  const client = await on.clients.pusher({ user });
  client.signin();
  await until('signed in', () => client.user.user_data);
  await until('subscribed to the user', () => client.user.serverToUserChannel?.subscribed);
  return client;
}

test('a signed-in user gets the events that are sent to it', async () => {
  const [tab, otherTab, ben] = [await signedIn('ann'), await signedIn('ann'), await signedIn('ben')];
  const others = [];
  ben.user.bind('notice', (data) => others.push(data));
  const arrived = [tab, otherTab].map((client) => next(client.user, 'notice'));
  const answer = await on.backend.sendToUser('1', 'notice', { text: 'for Ann' });
  assert.equal(answer.status, 200);
  assert.deepEqual(await Promise.all(arrived), [{ text: 'for Ann' }, { text: 'for Ann' }]);
  const fence = next(ben.user, 'fence');
  await on.backend.sendToUser('2', 'fence', {});
  await fence;
  assert.deepEqual(others, []);
});

test('a sign-in keeps the user data as the application signed it', async () => {
  const client = await signedIn('ann');
  const { user_info } = on.application.user('ann');
  assert.deepEqual(client.user.user_data, { id: '1', user_info });
});

test('a presence channel takes the member from the sign-in', async () => {
  const client = await on.clients.pusher({
    user: 'ben',
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, callback) =>
        callback(null, on.backend.authorizeChannel(socketId, channelName)),
    },
  });
  client.signin();
  const room = await subscribed(client, 'presence-signed-in');
  assert.equal(room.members.me.id, '2');
  assert.equal(room.members.count, 1);
});

test('a forged sign-in is answered and changes nothing', async () => {
  const client = await on.clients.pusher({
    userAuthentication: {
      customHandler: (_, callback) =>
        callback(null, { auth: `${on.server.key}:00`, user_data: '{"id":"1"}' }),
    },
  });
  const error = next(client.connection, 'error');
  client.signin();
  assert.equal((await error).data.code, 4009);
  assert.equal(client.connection.state, 'connected');
  assert.equal(client.user.user_data, null);
});

test('ending the connections of a user ends all of them and no others', async () => {
  const [tab, otherTab, ben] = [await signedIn('ann'), await signedIn('ann'), await signedIn('ben')];
  const answer = await on.backend.terminateUserConnections('1');
  assert.equal(answer.status, 200);
  assert.deepEqual(await answer.json(), {});
  for (const client of [tab, otherTab]) {
    await until('given up', () => client.connection.state === 'disconnected');
  }
  const still = next(ben.user, 'still');
  await on.backend.sendToUser('2', 'still', {});
  await still;
});

test('ending the connections of a user reaches members who never signed in', async () => {
  const client = await on.clients.pusher({ user: 'cleo' });
  await subscribed(client, 'presence-kick');
  await on.backend.terminateUserConnections('3');
  await until('given up', () => client.connection.state === 'disconnected');
});
