// The server in a real browser: the built-in try-out page, and pusher-js's web builds on a page of
// another origin, as on anyone's web site.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { Application } from './application.mjs';
import { browse, packaged, Site } from './chromium.mjs';
import { address, backend } from './clients.mjs';
import { Server } from './server.mjs';
import { stage } from './stage.mjs';
import { until } from './waiting.mjs';

const on = stage();
const browser = browse();
const { open } = browser;

const shows = (page, pattern) =>
  until(`the page shows ${pattern}`, async () => pattern.test(await page.innerText('body')));

describe('the try-out page', () => {
  test('connects, joins a channel and shows what the API triggers', async () => {
    const page = await open(`${on.server.origin}/`);
    await shows(page, /\bconnected\b/i);
    await page.getByLabel('Channel').fill('try-out');
    await page.getByRole('button', { name: 'Join' }).click();
    await until('the page has subscribed', async () => {
      const answer = await on.backend.get({ path: '/channels/try-out' });
      return (await answer.json()).occupied;
    });
    await shows(page, /Joined: my-channel, try-out/);
    await on.backend.trigger('try-out', 'hello', { text: 'Grüße <b>🚀</b>' });
    await shows(page, /hello/);
    await shows(page, /Grüße <b>🚀<\/b>/);
    assert.deepEqual(page.complaints, []);
    await page.context().close();
  });

  for (const transport of ['xhr_streaming', 'xhr_polling']) {
    test(`goes on over ${transport}`, async () => {
      const page = await open(`${on.server.origin}/`);
      await shows(page, /\bconnected\b/i);
      const socket = await page.innerText('#log');
      await page.getByLabel('Transport').selectOption(transport);
      await until('the page has subscribed anew', async () => (await page.innerText('#channels')) === 'my-channel');
      assert.notEqual(await page.innerText('#log'), socket);
      await page.getByLabel('Channel').fill(`over-${transport}`);
      await page.getByRole('button', { name: 'Join' }).click();
      await shows(page, new RegExp(`Joined: my-channel, over-${transport}`));
      // More than one streaming answer has room for.
      for (let n = 0; n < 40; n += 1) {
        await on.backend.trigger(`over-${transport}`, 'e', { n, padding: 'ü'.repeat(9000) });
      }
      await shows(page, /"n":39/);
      const heard = [...(await page.innerText('#log')).matchAll(/"n":(\d+)/g)].map(([, n]) => Number(n));
      assert.deepEqual(heard, [...Array(40).keys()].reverse());
      await page.getByLabel('Transport').selectOption('ws');
      await until('the session is gone', async () => {
        const answer = await on.backend.get({ path: '/connections' });
        return (await answer.json()).connections === 1;
      });
      assert.deepEqual(page.complaints, []);
      await page.context().close();
    });
  }

  test('loads nothing from anywhere else', async () => {
    const context = await browser.context();
    const page = await context.newPage();
    const hosts = new Set();
    page.on('request', (request) => hosts.add(new URL(request.url()).host));
    await page.goto(`${on.server.origin}/`);
    await shows(page, /\bconnected\b/i);
    assert.deepEqual([...hosts], [`${on.server.host}:${on.server.port}`]);
    await context.close();
  });
});

describe("pusher-js's web builds", () => {
  let site;
  let origin;

  before(async () => {
    site = await Site.start({
      '/pusher.js': web('pusher.js'),
      '/pusher-with-encryption.js': web('pusher-with-encryption.js'),
    });
    origin = site.origin;
  });
  after(() => site?.stop());

  for (const build of ['pusher.js', 'pusher-with-encryption.js']) {
    const names = [`web-${build}`, `private-web-${build}`, `presence-web-${build}`];
    if (build.includes('encryption')) names.push(`private-encrypted-web-${build}`);

    test(`${build} subscribes from another origin`, async () => {
      const page = await open(origin);
      await page.addScriptTag({ url: `/${build}` });
      await page.evaluate(
        ({ key, options, endpoint, token }) => {
          window.events = [];
          window.subscribed = [];
          window.client = new window.Pusher(key, {
            ...options,
            channelAuthorization: { endpoint, headers: { Authorization: `Bearer ${token}` } },
          });
          window.join = (name) => {
            const channel = window.client.subscribe(name);
            channel.bind('e', (data) => window.events.push([name, data]));
            channel.bind('pusher:subscription_succeeded', () => window.subscribed.push(name));
          };
        },
        {
          key: on.server.key,
          options: address(on.server),
          endpoint: on.application.channelEndpoint,
          token: on.application.token('ann'),
        },
      );
      await page.evaluate((all) => all.forEach(window.join), names);
      await until('all channels are subscribed', async () => {
        const subscribed = await page.evaluate(() => window.subscribed);
        return subscribed.length === names.length;
      });
      for (const name of names) await backend(on.server).trigger(name, 'e', { text: 'Grüße 🚀' });
      const events = await until('all events have arrived', async () => {
        const heard = await page.evaluate(() => window.events);
        return heard.length === names.length && heard;
      });
      assert.deepEqual(events, names.map((name) => [name, { text: 'Grüße 🚀' }]));
      assert.deepEqual(page.complaints, []);
      await page.context().close();
    });

    test(`${build} may ask the API's health from another origin`, async () => {
      const page = await open(origin);
      const health = await page.evaluate(
        (url) => fetch(url).then((answer) => answer.status),
        `${on.server.origin}/up`,
      );
      assert.equal(health, 200);
      await page.context().close();
    });
  }
});

describe('a bare WebSocket', () => {
  // What a browser calls clean decides whether older pusher-js try again: the close frame must have come
  // whole, and the stream must have ended after it.
  const closed = (page, url) =>
    page.evaluate(
      (url) =>
        new Promise((done) => {
          const frames = [];
          const socket = new WebSocket(url);
          socket.onmessage = ({ data }) => frames.push(JSON.parse(data));
          socket.onclose = ({ code, reason, wasClean }) => done({ frames, code, reason, wasClean });
        }),
      url,
    );

  test('is refused cleanly, and told why first', async () => {
    const page = await open(`${on.server.origin}/up`);
    const url = `ws://${on.server.host}:${on.server.port}/app/no-such-key`;
    const message = 'Application does not exist';
    for (let attempt = 0; attempt < 20; attempt += 1) {
      assert.deepEqual(await closed(page, url), {
        frames: [{ event: 'pusher:error', data: { code: 4001, message } }],
        code: 4001,
        reason: message,
        wasClean: true,
      });
    }
    await page.context().close();
  });

  test('is closed cleanly when the server leaves', async () => {
    const leaving = await Server.start();
    const page = await open(`${on.server.origin}/up`);
    const url = `ws://${leaving.host}:${leaving.port}/app/${leaving.key}`;
    const closings = Promise.all(Array.from({ length: 10 }, () => closed(page, url)));
    await until('all are connected', async () => {
      const { connections } = await (await backend(leaving).get({ path: '/connections' })).json();
      return connections === 10;
    });
    await leaving.stop();
    for (const { code, wasClean } of await closings) {
      assert.deepEqual({ code, wasClean }, { code: 4200, wasClean: true });
    }
    await page.context().close();
  });
});

describe('compression', () => {
  test('pusher.js hears what was compressed once for everybody', async () => {
    const server = await Server.start({ app: 'compression = true\nclient_events = "members"' });
    const site = await Site.start({ '/pusher.js': web('pusher.js') });
    try {
      const pages = [await open(site.origin), await open(site.origin)];
      const options = { key: server.key, options: address(server), socket: `ws://${server.host}:${server.port}/app/${server.key}` };
      for (const page of pages) {
        await page.addScriptTag({ url: '/pusher.js' });
        await page.evaluate(({ key, options, socket }) => {
          window.events = [];
          const channel = new window.Pusher(key, options).subscribe('shapes');
          channel.bind('e', (data) => window.events.push(data));
          channel.bind('pusher:subscription_succeeded', () => (window.subscribed = true));
          const bare = new WebSocket(socket);
          bare.onopen = () => (window.extensions = bare.extensions);
        }, options);
        await until('subscribed', () => page.evaluate(() => window.subscribed && window.extensions !== undefined));
        assert.match(await page.evaluate(() => window.extensions), /^permessage-deflate/);
      }
      const texts = [100, 600, 1500, 13_000, 66_000].map((size) => '{"id":1,"name":"Grüße 🚀"},'.repeat(size / 25));
      for (const text of texts) await backend(server).trigger('shapes', 'e', { text });
      for (const page of pages) {
        const heard = await until('all have come', async () => {
          const events = await page.evaluate(() => window.events);
          return events.length === texts.length && events;
        });
        assert.deepEqual(heard.map(({ text }) => text), texts);
        assert.deepEqual(page.complaints, []);
        await page.context().close();
      }
      const metrics = await (await fetch(`${server.origin}/metrics`)).text();
      const [plain, sent] = ['plain_bytes', 'bytes'].map((name) =>
        Number(metrics.match(new RegExp(`^fanfare_compressed_${name}_total\\{.*\\} (\\S+)$`, 'm'))[1]),
      );
      assert.ok(sent > 0 && sent < plain / 10, `${sent} bytes instead of ${plain}`);
    } finally {
      site.stop();
      await server.stop();
    }
  });
});

function web(build) {
  return packaged(`pusher-js/dist/web/${build}`);
}

describe('a page that is left by a link', () => {
  test('leaves its presence channel while the browser keeps it, and comes back subscribed', async () => {
    // A second, and what the server waits beyond that: 25 s until it asks, 30 s for the answer.
    const server = await Server.start({ app: 'activity_timeout = 1' });
    const application = await Application.start(server);
    const site = await Site.start({
      '/': '<!doctype html><title>A site</title><link rel="icon" href="data:,"><a href="/other">Go</a>',
      '/other': '<!doctype html><title>Elsewhere</title><link rel="icon" href="data:,">',
      '/pusher.js': web('pusher.js'),
    });
    const users = async () => {
      const answer = await backend(server).get({ path: '/channels/presence-left/users' });
      return (await answer.json()).users.map(({ id }) => id);
    };
    try {
      const page = await open(site.origin);
      await page.addScriptTag({ url: '/pusher.js' });
      await page.evaluate(
        ({ key, options, endpoint, token }) => {
          window.addEventListener('pageshow', ({ persisted }) => (window.persisted = persisted));
          window.events = [];
          const client = new window.Pusher(key, {
            ...options,
            channelAuthorization: { endpoint, headers: { Authorization: `Bearer ${token}` } },
          });
          client.subscribe('presence-left').bind('e', (data) => window.events.push(data));
        },
        {
          key: server.key,
          options: address(server),
          endpoint: application.channelEndpoint,
          token: application.token('ann'),
        },
      );
      await until('the page is present', async () => (await users()).length === 1);
      await page.click('a');
      await page.waitForURL('**/other');
      assert.deepEqual(await users(), ['1'], 'the browser keeps the page with its socket');
      await until('the page is gone', async () => (await users()).length === 0, 70_000);
      await page.goBack({ waitUntil: 'commit' });
      await until('the page was kept', () => page.evaluate(() => window.persisted));
      await until('the page is present again', async () => (await users()).length === 1, 70_000);
      await backend(server).trigger('presence-left', 'e', { n: 1 });
      await until('it hears', async () => (await page.evaluate(() => window.events)).length === 1);
      await page.context().close();
    } finally {
      site.stop();
      await application.stop();
      await server.stop();
    }
  });
});
