// Stock Echo in Chromium with `wsPath: '/resume/' + token`, 50 events a second, and everything that breaks links: no event
// is missed, all come in order, and twice only those that no answered ping covered. On a server of its own, and on two
// nodes behind a proxy.
//
// RESUME_CUTS=100 RESUME_LONGEST=20 node --test browser-resume.test.mjs    for half an hour instead of one minute

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test } from 'node:test';

import { Application } from './application.mjs';
import { browse, packaged, Site } from './chromium.mjs';
import { backend } from './clients.mjs';
import { Link } from './link.mjs';
import { freePort, Server } from './server.mjs';
import { until } from './waiting.mjs';

const CUTS = Number(process.env.RESUME_CUTS ?? 6);
/** Seconds of the longest cut. */
const LONGEST = Number(process.env.RESUME_LONGEST ?? 2);
const SHORTEST = 0.2;
const RATE = 50;
/** A refused connection costs pusher-js 15 s, the next one 30, the one after that 60. */
const BACK = 180_000;

const CHANNELS = ['resumed', 'private-resumed', 'presence-resumed'];

const browser = browse();
let server, application, link, site;
/** Of the process that took over, if one did. */
let successor;
before(async () => {
  server = await Server.start({ app: 'resume = "5m"' });
  application = await Application.start(server);
  link = await Link.open(server.port);
  site = await Site.start({
    '/pusher.js': packaged('pusher-js/dist/web/pusher.js'),
    '/echo.js': packaged('laravel-echo/dist/echo.iife.js'),
  });
});
after(async () => {
  link?.close();
  site?.stop();
  await application?.stop();
  if (successor) process.kill(successor, 'SIGTERM');
  else server?.child.kill('SIGTERM');
  await server?.ended;
});

/** What runs in the page, as docs/resume.md has it. */
function begin({ key, host, port, endpoint, bearer }) {
  const token = `${Math.floor(Date.now() / 1000)}-${Math.random().toString(36).slice(2).padEnd(16, '0')}`;
  const Echo = window.Echo.default ?? window.Echo;
  window.echo = new Echo({
    broadcaster: 'reverb',
    key,
    wsHost: host,
    wsPort: port,
    wsPath: `/resume/${token}`,
    forceTLS: false,
    enabledTransports: ['ws'],
    authEndpoint: endpoint,
    auth: { headers: { Authorization: `Bearer ${bearer}` } },
    // A link that is there and passes nothing on is noticed after these.
    activityTimeout: 2000,
    pongTimeout: 1000,
  });
  window.heard = {};
  window.gaps = {};
  const channels = [window.echo.channel('resumed'), window.echo.private('resumed'), window.echo.join('resumed')];
  for (const channel of channels) {
    const { name } = channel;
    window.heard[name] = [];
    window.gaps[name] = 0;
    channel.listen('.tick', ({ n }) => window.heard[name].push(n));
    channel.subscription.bind('resume:gap', () => (window.gaps[name] += 1));
  }
}

/** Notes by the page's frames what is acknowledged for certain, and which of that comes again all the same. */
function watch(page) {
  const seen = new Set();
  const acknowledged = new Set();
  const again = [];
  page.on('websocket', (socket) => {
    let asked;
    socket.on('framereceived', ({ payload }) => {
      const { event, channel, data } = JSON.parse(payload);
      if (event === 'pusher:ping') {
        // The server asks once more when the answer to the last time has come.
        asked?.forEach((key) => acknowledged.add(key));
        asked = new Set(seen);
      } else if (event === 'tick') {
        const key = `${channel} ${JSON.parse(data).n}`;
        if (acknowledged.has(key)) again.push(key);
        seen.add(key);
      }
    });
  });
  return { again, acknowledged };
}

/** Events to all channels in turn, until it is told to stop; how many each channel has had. */
class Publisher {
  constructor(to = server, next = Object.fromEntries(CHANNELS.map((name) => [name, 0]))) {
    this.sdk = backend(to);
    this.next = next;
    this.done = this.run();
  }

  async run() {
    for (let turn = 0; !this.stops; turn += 1) {
      const name = CHANNELS[turn % CHANNELS.length];
      const due = new Promise((later) => setTimeout(later, 1000 / RATE));
      // A server that is on its way out or not yet back takes nothing: the application tries again.
      const n = this.next[name];
      const taken = await this.sdk.trigger(name, 'tick', { n }).then(({ status }) => status === 200, () => false);
      if (taken) this.next[name] = n + 1;
      await due;
    }
  }

  async stop() {
    this.stops = true;
    await this.done;
  }
}

/** A page that is subscribed to all, and what its connection does. */
async function opened(through = link) {
  const page = await browser.open(site.origin);
  const watched = watch(page);
  await page.addScriptTag({ url: '/pusher.js' });
  await page.addScriptTag({ url: '/echo.js' });
  await page.evaluate(begin, {
    key: server.key,
    host: '127.0.0.1',
    port: through.port,
    endpoint: application.channelEndpoint,
    bearer: application.token('ann'),
  });
  const connected = () => page.evaluate(() => window.echo.connector.pusher.connection.state === 'connected');
  const subscribed = () => page.evaluate(() => window.echo.connector.pusher.allChannels().every((one) => one.subscribed));
  const back = async () => {
    await until('connected', connected, BACK);
    await until('subscribed', subscribed);
  };
  await back();
  return { page, watched, back };
}

/** What the page has heard of a channel, each event the first time that it came. */
function first(heard) {
  return [...new Set(heard)];
}

/** All events that were published so far have come, but for those that a gap was told of. */
async function caughtUp({ page }, publisher) {
  for (const name of CHANNELS) {
    const last = publisher.next[name] - 1;
    await until(`${name} has the last of ${last + 1}`, async () => {
      return (await page.evaluate((name) => window.heard[name].at(-1), name)) === last;
    }, BACK);
  }
  return page.evaluate(() => ({ heard: window.heard, gaps: window.gaps }));
}

const pause = (seconds) => new Promise((later) => setTimeout(later, 1000 * seconds));

test(`${CUTS} cuts and a reload lose nothing`, async () => {
  const one = await opened();
  const publisher = new Publisher();
  for (let cut = 0; cut < CUTS; cut += 1) {
    // Long enough now and then for the server to ask twice what has come.
    await pause(0.3 + 4 * Math.random());
    const seconds = SHORTEST * (LONGEST / SHORTEST) ** Math.random();
    const how = ['reset', 'frozen', 'gone'][cut % 3];
    if (how === 'gone') {
      await link.goFor(1000 * seconds);
    } else {
      if (how === 'reset') link.cut();
      else link.freeze();
      link.isUp = false;
      await pause(seconds);
      link.isUp = true;
    }
    // Some cuts come while it is still on its way back.
    if (cut % 4) await one.back();
    if (cut === Math.floor(CUTS / 2)) server.child.kill('SIGHUP');
  }
  await one.back();
  // It does so every two seconds: the pauses before all cuts may have been shorter.
  await until('the server asks what has come', () => one.watched.acknowledged.size > 0);
  await publisher.stop();
  const { heard, gaps } = await caughtUp(one, publisher);
  for (const name of CHANNELS) {
    assert.equal(gaps[name], 0, name);
    const all = [...Array(publisher.next[name]).keys()];
    assert.deepEqual(first(heard[name]), all, `${name}: all, in the order in which they were published`);
  }
  assert.deepEqual(one.watched.again, [], 'what was acknowledged comes no more');
  const twice = CHANNELS.reduce((sum, name) => sum + heard[name].length - first(heard[name]).length, 0);
  console.log(`${CUTS} cuts, ${CHANNELS.reduce((sum, name) => sum + publisher.next[name], 0)} events, ${twice} of them twice`);
  await one.page.context().close();
});

/** Has the process start another one that goes on; its number. */
async function handOver(server) {
  server.child.kill('SIGUSR2');
  const [, pid] = await until('another process goes on', () =>
    // eslint-disable-next-line no-control-regex
    server.log.replace(/\x1b\[[0-9;]*m/g, '').match(/another process goes on.*pid=(\d+)/),
  );
  return Number(pid);
}

/** Holds what the page has heard of each channel against what was published; how many events came twice. */
function judge(what, { heard, gaps }, publisher, { mayMiss }) {
  let twice = 0;
  for (const name of CHANNELS) {
    const missing = [...Array(publisher.next[name]).keys()].filter((n) => !heard[name].includes(n));
    const firsts = first(heard[name]);
    assert.deepEqual(firsts, firsts.toSorted((a, b) => a - b), `${name}: in order`);
    if (mayMiss) assert.ok(missing.length === 0 || gaps[name] > 0, `${name} is not told that it misses ${missing}`);
    else assert.deepEqual({ missing, gaps: gaps[name] }, { missing: [], gaps: 0 }, name);
    twice += heard[name].length - firsts.length;
    console.log(`${what}: ${name} missed ${missing.length} of ${publisher.next[name]}, ${gaps[name]} gaps told`);
  }
  console.log(`${what}: ${twice} events came twice`);
}

for (const how of ['a stop and a start', 'a hand-over']) {
  test(`${how} loses nothing without a word`, async () => {
    const one = await opened();
    const publisher = new Publisher();
    // A token says its time in whole seconds: for that long it cannot be told which of two servers it is older than.
    await pause(2.5);
    const { port } = server;
    if (how === 'a hand-over') {
      successor = await handOver(server);
    } else {
      await server.stop();
      server = await Server.start({ port, app: 'resume = "5m"' });
      link.to = server.port;
    }
    await pause(0.5);
    await one.back();
    await pause(1);
    await publisher.stop();
    // A server of its own has its logs in its memory, which it hands on, and which a stop ends.
    judge(how, await caughtUp(one, publisher), publisher, { mayMiss: how !== 'a hand-over' });
    assert.deepEqual(one.watched.again, [], 'what was acknowledged comes no more');
    await one.page.context().close();
  });
}

test('two nodes behind a proxy lose nothing by cuts, a hand-over, a stop and a death', async (t) => {
  const redisPort = await freePort();
  const options = ['--bind', '127.0.0.1', '--port', `${redisPort}`, '--save', ''];
  const redis = spawn('redis-server', options, { stdio: 'ignore' });
  t.after(() => redis.kill('SIGKILL'));
  await once(redis, 'spawn');
  const app = `resume = "5m"\n[cluster]\nredis = "redis://127.0.0.1:${redisPort}"`;
  const nodes = [await Server.start({ app }), await Server.start({ app }), await Server.start({ app })];
  let goesOn;
  t.after(() => {
    if (goesOn) process.kill(goesOn, 'SIGTERM');
    nodes.forEach((node) => node.child.kill('SIGKILL'));
  });
  const [moves, stops, stays] = nodes;
  for (const node of nodes) {
    await until('a node is ready', async () => (await fetch(`${node.origin}/ready`)).status === 200);
  }
  const proxy = await Link.open(stays.port);
  t.after(() => proxy.close());
  const one = await opened(proxy);
  let publisher = new Publisher(stays);
  for (const [how, node] of [['reset', moves], ['frozen', stops], ['reset', moves], ['frozen', stays], ['reset', moves]]) {
    await pause(2.5);
    proxy.to = node.port;
    if (how === 'reset') proxy.cut();
    else proxy.freeze();
    // Long enough for a page to notice a link that passes nothing on.
    await pause(how === 'reset' ? 0.5 : 4);
    await one.back();
  }
  goesOn = await handOver(moves);
  await pause(1.5);
  await one.back();
  proxy.to = stops.port;
  proxy.cut();
  await pause(1);
  await one.back();
  proxy.to = stays.port;
  await stops.stop();
  await one.back();
  await pause(1);
  await publisher.stop();
  judge('two nodes', await caughtUp(one, publisher), publisher, { mayMiss: false });
  assert.deepEqual(one.watched.again, [], 'what was acknowledged comes no more');
  // A node that dies takes what was acknowledged in its last half second with it, and maybe more than that of what was new.
  publisher = new Publisher(stays, publisher.next);
  const last = await Server.start({ app });
  nodes.push(last);
  proxy.to = last.port;
  proxy.cut();
  await pause(1);
  await one.back();
  await pause(3);
  proxy.to = stays.port;
  last.child.kill('SIGKILL');
  await pause(1);
  await one.back();
  await pause(1);
  await publisher.stop();
  judge('a death', await caughtUp(one, publisher), publisher, { mayMiss: true });
  await one.page.context().close();
});
