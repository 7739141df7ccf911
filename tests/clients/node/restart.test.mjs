// A restart under real pusher-js clients. What counts is how many TCP connects are refused: each costs a client of
// pusher-js 15 s, then 30, then 60. A handshake that is thrown away costs as much.

import assert from 'node:assert/strict';
import { Socket } from 'node:net';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { test } from 'node:test';

import { Application } from './application.mjs';
import { Clients, closing, connected, subscribed } from './clients.mjs';
import { Server } from './server.mjs';
import { until } from './waiting.mjs';

const CLIENTS = 40;

/** Counts connects to `port` that are refused from now on. */
function refusals(port) {
  const { connect } = Socket.prototype;
  const count = { refused: 0 };
  Socket.prototype.connect = function (...how) {
    // The tests themselves ask by fetch whether the server is there yet.
    if (/\bundici\b/.test(new Error().stack)) return connect.apply(this, how);
    this.once('error', (error) => {
      if (error.code === 'ECONNREFUSED' && error.port === port) count.refused += 1;
    });
    return connect.apply(this, how);
  };
  count.end = () => (Socket.prototype.connect = connect);
  return count;
}

/** A server with so many clients, and what goes wrong with their connections. */
async function crowd(t) {
  const server = await Server.start();
  const application = await Application.start(server);
  const clients = new Clients(server, application);
  const count = refusals(server.port);
  t.after(async () => {
    count.end();
    clients.close();
    await application.stop();
  });
  const all = await Promise.all(Array.from({ length: CLIENTS }, () => clients.pusher()));
  await Promise.all(all.map((client) => subscribed(client, 'restart')));
  const errors = [];
  for (const client of all) {
    // Errors of the protocol have a code; the rest are those of the connection.
    client.connection.bind('error', (error) => {
      if (!error?.data?.code && !error?.error?.data?.code) errors.push(error);
    });
  }
  return { server, all, count, errors };
}

async function back(all) {
  for (const client of all) await connected(client, 90_000);
  await until('all are subscribed again', () =>
    all.every((client) => client.channel('restart').subscribed),
  );
}

test('a stop and a start refuse few, and no handshake is thrown away', async (t) => {
  const { server, all, count, errors } = await crowd(t);
  const closings = all.map(closing);
  const late = monitorEventLoopDelay({ resolution: 10 });
  late.enable();
  await server.stop();
  const stopped = performance.now();
  const second = await Server.start({ port: server.port });
  // Its end may have been noticed late.
  const seconds = (performance.now() - stopped) / 1000 + late.max / 1e9;
  late.disable();
  t.after(() => second.stop());
  assert.ok((await Promise.all(closings)).every(({ code }) => code === 4200));
  await back(all);
  assert.deepEqual(errors, [], 'errors that are none of the protocol');
  // Those who came while it stopped were told to come back a second later. A machine with much else to do takes its
  // time to start the second, and who comes meanwhile is refused.
  const most = CLIENTS * (1 / 4 + seconds);
  assert.ok(count.refused <= most, `${count.refused} of ${CLIENTS} were refused in ${seconds} s`);
});

test('a hand-over refuses nobody', async (t) => {
  const { server, all, count, errors } = await crowd(t);
  const closings = all.map(closing);
  server.child.kill('SIGUSR2');
  const [, pid] = await until('another process goes on', () =>
    // eslint-disable-next-line no-control-regex
    server.log.replace(/\x1b\[[0-9;]*m/g, '').match(/another process goes on.*pid=(\d+)/),
  );
  t.after(async () => {
    process.kill(Number(pid), 'SIGTERM');
    await server.ended;
  });
  assert.ok((await Promise.all(closings)).every(({ code }) => code === 4200));
  await back(all);
  assert.deepEqual({ refused: count.refused, errors }, { refused: 0, errors: [] });
});
