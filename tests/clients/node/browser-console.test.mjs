// The debug console in a real browser, tab by tab.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import WebSocket from 'ws';

import { browse } from './chromium.mjs';
import { Server, freePort } from './server.mjs';
import { stage } from './stage.mjs';
import { until } from './waiting.mjs';

const on = stage({ app: 'compression = true' });
const { open } = browse();

const shows = (page, selector, pattern) =>
  until(`${selector} shows ${pattern}`, async () => pattern.test((await textsNow(page, selector)).join('\n')));

/** None while the page makes way for the next one, as after a form was sent. */
const textsNow = (page, selector) =>
  page.locator(selector).allInnerTexts().catch((error) => {
    if (/because of a navigation/.test(error.message)) return [];
    throw error;
  });

const isConnected = (page) => shows(page, '#try-status', /^Connected as \d+\.\d+/);

/** Console pages of all sizes and colours are looked at by these. */
const LOOKS = [['light', 1366, 900], ['dark', 1366, 900], ['light', 360, 740], ['dark', 360, 740]];

describe('the tab Live', () => {
  test('shows an event, and its payload once that is asked for', async () => {
    const page = await open(`${on.server.origin}/console#live`);
    await shows(page, '#status', /Live/);
    await on.backend.trigger('orders', 'shipped', { text: 'unseen' });
    await shows(page, '#feed', /shipped on orders/);
    assert.doesNotMatch(await page.innerText('#feed'), /unseen/);
    await page.getByLabel('Payloads').check();
    await until('the payload is seen', async () => {
      await on.backend.trigger('orders', 'shipped', { text: 'Grüße' });
      const head = page.locator('#feed .head', { hasText: 'shipped' }).first();
      if (!(await head.count())) return false;
      await head.click();
      return /"text": "Grüße"/.test(await page.locator('#feed pre').first().innerText());
    });
    assert.deepEqual(page.complaints, []);
    await page.context().close();
  });

  test('explains a refusal with what should have been signed', async () => {
    const page = await open(`${on.server.origin}/console#live`);
    await shows(page, '#status', /Live/);
    const socket = new WebSocket(`ws://${on.server.host}:${on.server.port}/app/${on.server.key}?protocol=7`);
    let id;
    socket.onmessage = ({ data }) => {
      const frame = JSON.parse(data);
      if (frame.event !== 'pusher:connection_established') return;
      id = JSON.parse(frame.data).socket_id;
      const auth = `${on.server.key}:${'0'.repeat(64)}`;
      socket.send(JSON.stringify({ event: 'pusher:subscribe', data: { channel: 'private-orders', auth } }));
    };
    await shows(page, '#feed', /private-orders · Invalid signature/);
    await page.locator('#feed .is-wrong .head').first().click();
    await shows(page, '#feed .detail', new RegExp(`${id}:private-orders`));
    await shows(page, '#feed .detail', /its secret is another/);
    await page.locator('#feed .detail').getByRole('button', { name: id }).click();
    await shows(page, '#sheet', /Transport\s+websocket/);
    await shows(page, '#sheet', /private-orders Invalid signature/);
    await page.keyboard.press('Escape');
    socket.close();
    await shows(page, '#feed', /its client closed it/);
    assert.deepEqual(page.complaints, []);
    await page.context().close();
  });

  test('shows hostile names and payloads as text', async () => {
    const page = await open(`${on.server.origin}/console#live`);
    await shows(page, '#status', /Live/);
    await page.getByLabel('Payloads').check();
    const hostile = ['<img src=x onerror=alert(1)>', '</script><script>alert(1)</script>', '"><svg onload=alert(1)>',
      'javascript:alert(1)', '{{7*7}}', '\u202ertl', '<b>bold</b>'];
    const alerts = [];
    page.on('dialog', (dialog) => { alerts.push(dialog.message()); dialog.dismiss(); });
    const before = await page.locator('*').count();
    for (const text of hostile) {
      await until(`${text} is shown`, async () => {
        await on.backend.trigger('orders', text, { text });
        return (await page.innerText('#feed')).includes(text);
      });
    }
    for (const head of await page.locator('#feed .head').all()) await head.click();
    await page.goto(`${on.server.origin}/console#try`);
    await isConnected(page);
    await shows(page, '#joined', /my-channel\s+subscribed/);
    for (const text of hostile) await on.backend.trigger('my-channel', text, text);
    await shows(page, '#arrivals', /<b>bold<\/b>/);
    for (const name of ['img', 'svg[onload]', 'script:not([src])', '#feed b b', '#arrivals b b']) {
      assert.equal(await page.locator(`main ${name}`).count(), 0, `${name} came alive`);
    }
    assert.ok(before > 0);
    assert.deepEqual(alerts, []);
    assert.deepEqual(page.complaints, []);
    await page.context().close();
  });

  test('lists channels, and their members and sockets', async () => {
    const page = await open(`${on.server.origin}/console#live`);
    const client = await on.clients.pusher({ user: 'ann' });
    await new Promise((done) => { client.subscribe('presence-hall').bind('pusher:subscription_succeeded', done); });
    await shows(page, '#channels', /presence-hall\s+1/);
    await page.locator('#channels button', { hasText: 'presence-hall' }).click();
    await shows(page, '#sheet', /Members\s+1/);
    await page.getByRole('button', { name: 'Show only this in the feed' }).click();
    await until('it is filtered', async () => (await page.inputValue('#filter-channel')) === 'presence-hall');
    await page.context().close();
  });

  test('is worked by keys, with a tab for each list', async () => {
    const page = await open(`${on.server.origin}/console#live`);
    await page.locator('#tab-live').focus();
    await page.keyboard.press('ArrowRight');
    await until('Try is shown', () => page.locator('#panel-try').isVisible());
    assert.equal(await page.locator('#tab-try').getAttribute('aria-selected'), 'true');
    await page.keyboard.press('ArrowRight');
    await until('Connect is shown', () => page.locator('#panel-connect').isVisible());
    await page.keyboard.press('ArrowRight');
    await until('Live is shown', () => page.locator('#panel-live').isVisible());
    await page.locator('#status').click();
    await page.keyboard.press('/');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'filter-channel');
    await page.context().close();
  });
});

describe('the tab Try', () => {
  test('has two pages meet in a presence channel, and whisper', async () => {
    const [one, two] = await Promise.all([1, 2].map(() => open(`${on.server.origin}/console#try`)));
    for (const [page, name] of [[one, 'ann'], [two, 'ben']]) {
      await isConnected(page);
      await page.getByLabel('Present as').fill(name);
      await page.getByRole('button', { name: 'Join' }).click();
      await shows(page, '#joined', /presence-lobby\s+subscribed/);
    }
    await shows(one, '#joined', /2 here: ann, ben/);
    await one.getByRole('button', { name: 'Whisper' }).click();
    await shows(two, '#arrivals', /client-typing/);
    await two.getByRole('button', { name: 'Leave presence-lobby' }).click();
    await shows(one, '#joined', /1 here: ann/);
    assert.deepEqual([...one.complaints, ...two.complaints], []);
    await Promise.all([one, two].map((page) => page.context().close()));
  });

  for (const transport of ['WebSocket', 'HTTP streaming']) {
    test(`sends an event and sees it arrive by ${transport}`, async () => {
      const page = await open(`${on.server.origin}/console#try`);
      await isConnected(page);
      await page.getByLabel('Transport').selectOption({ label: transport });
      await isConnected(page);
      await shows(page, '#joined', /my-channel\s+subscribed/);
      const text = `over ${transport}`;
      await page.locator('#send-data').fill(JSON.stringify({ text }));
      await page.getByRole('button', { name: 'Send event' }).click();
      await shows(page, '#arrivals', new RegExp(`greeting\\s+.*my-channel.*${text}`, 's'));
      assert.deepEqual(page.complaints, []);
      await page.context().close();
    });
  }

  test('signs a request that can be pasted, and shows no secret', async () => {
    const page = await open(`${on.server.origin}/console#try`);
    await isConnected(page);
    await shows(page, '#code', /^curl .*auth_signature=[0-9a-f]{64}'$/s);
    const [, body, url] = (await page.innerText('#code')).match(/-d '(.*)' '(.*)'$/s);
    const answer = await fetch(url, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body });
    assert.equal(answer.status, 200);
    await shows(page, '#arrivals', /greeting/);
    for (const language of ['PHP', 'Node', 'Python']) {
      await page.getByRole('button', { name: language }).click();
      await shows(page, '#code', /PUSHER_APP_SECRET/);
      assert.ok(!(await page.content()).includes(on.server.secret));
    }
    await page.context().close();
  });

  test('signs in, and ends the user', async () => {
    const page = await open(`${on.server.origin}/console#try`);
    await isConnected(page);
    await page.locator('#sign-in-user').fill('ann');
    await page.getByRole('button', { name: 'Sign in' }).click();
    await shows(page, '#arrivals', /pusher:signin_success/);
    await page.locator('#end-user-id').fill('ann');
    await page.getByRole('button', { name: 'Close its connections' }).click();
    await shows(page, '#arrivals', /4009/);
    await page.context().close();
  });

  test('comes back after a restart, with the new key', async () => {
    const port = await freePort();
    const first = await Server.start({ port });
    const page = await open(`${first.origin}/console#try`);
    await isConnected(page);
    await first.stop();
    await shows(page, '#try-status', /Closed|Connecting/);
    const second = await Server.start({ port, key: 'another-key' });
    await until('it has the new key', async () => /another-key/.test(await page.locator('#connect-key').textContent()), 20_000);
    await isConnected(page);
    await shows(page, '#status', /Live/);
    await page.context().close();
    await second.stop();
  });
});

describe('the tab Connect', () => {
  test('has the address that the browser came by, and copies', async () => {
    const page = await open(`http://localhost:${on.server.port}/console#connect`);
    await page.context().grantPermissions(['clipboard-read', 'clipboard-write']);
    await shows(page, '#snippets', new RegExp(`wsHost: "localhost",\\s+wsPort: ${on.server.port}`));
    await page.locator('#snippets .copy').first().click();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    assert.match(copied, new RegExp(`REVERB_APP_KEY=${on.server.key}`));
    assert.ok(!copied.includes(on.server.secret));
    await page.context().close();
  });
});

describe('a console with a token', () => {
  test('asks for it, and opens', async () => {
    const token = 'sixteen letters!';
    const server = await Server.start({ settings: `[console]\naccess = "on"\ntoken = "${token}"\n` });
    const page = await open(`${server.origin}/console`);
    await page.getByLabel('Token of the console').fill('sixteen letters?');
    await page.getByRole('button', { name: 'Open the console' }).click();
    await shows(page, '#problem', /not the token/);
    await page.getByLabel('Token of the console').fill(token);
    await page.getByRole('button', { name: 'Open the console' }).click();
    await shows(page, '#status', /Live/);
    const cookies = await page.context().cookies();
    assert.deepEqual(cookies.map(({ httpOnly, sameSite }) => [httpOnly, sameSite]), [[true, 'Strict']]);
    await page.getByRole('button', { name: 'Log out' }).click();
    await page.getByLabel('Token of the console').waitFor();
    await page.context().close();
    await server.stop();
  });
});

describe('its look', () => {
  for (const [scheme, width, height] of LOOKS) {
    test(`can be read in ${scheme} at ${width} pixels`, async () => {
      const page = await open(`${on.server.origin}/console`);
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width, height });
      await on.backend.trigger('my-channel', 'greeting', {});
      for (const tab of ['live', 'try', 'connect']) {
        await page.goto(`${on.server.origin}/console#${tab}`);
        await page.locator(`#panel-${tab}`).waitFor();
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.ok(wide <= 0, `${tab} is ${wide} pixels too wide`);
        assert.deepEqual(await page.evaluate(faint), [], tab);
      }
      await page.context().close();
    });
  }
});

/** Texts on the page whose contrast is under 4.5:1, with their colours. */
function faint() {
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const isText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!isText || !node.checkVisibility() || node.closest('.heard, svg, option')) continue;
    const [one, other] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < 4.5) found.push(`${node.tagName} "${node.textContent.trim().slice(0, 30)}" ${contrast.toFixed(2)}`);
  }
  return found;
}
