// Starts and stops the release binary for the tests of this folder. A test file owns its server;
// nothing here knows a client.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';

import { until } from './waiting.mjs';

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const BINARY = process.env.LANES_BINARY ?? join(ROOT, 'target', 'release', 'fanfare');
const { LANES_REDIS } = process.env;
const HOST = '127.0.0.1';
const RUNNING = new Set();

// A test file that dies halfway must not leave its servers behind.
process.on('exit', () => {
  for (const child of RUNNING) child.kill('SIGKILL');
});

// Nor must it wait for ever for what a test that failed has not closed. (With `--test-force-exit` Node 20 leaves before
// its report is written.)
after(() => {
  setTimeout(() => process.exit(), 5_000).unref();
});

/** With `LANES_REDIS` a server is the only node of a cluster. */
const redis = (port) =>
  LANES_REDIS ? { FANFARE_CLUSTER__REDIS: LANES_REDIS, FANFARE_CLUSTER__PREFIX: `lanes-${port}` } : {};

/**
 * Below the ports that Linux gives to listeners on port 0 and to connections, which could take that of a server while it
 * restarts. So many are taken at once; who listens on the first of them has the others.
 */
const [FIRST, END, BLOCK] = [10_000, 32_768, 100];
const own = { next: 0, end: 0 };

/** Listens on a port if nobody else does. */
function listening(port, host) {
  return new Promise((settled) => {
    const server = createServer();
    server.once('error', () => settled(null));
    server.listen({ port, host, exclusive: true }, () => settled(server));
  });
}

/** A port that nothing listens on, and that nobody else is given. */
export async function freePort() {
  for (let first = FIRST; ; ) {
    while (own.next < own.end) {
      const port = own.next++;
      const probe = await listening(port, HOST);
      if (!probe) continue;
      await new Promise((closed) => probe.close(closed));
      return port;
    }
    if (first + BLOCK > END) throw new Error('no block of ports that nobody has');
    const holder = await listening(first, '0.0.0.0');
    holder?.unref();
    if (holder) Object.assign(own, { next: first + 1, end: first + BLOCK });
    first += BLOCK;
  }
}

/** One running server: where it is, its app's credentials, and how to end it. */
export class Server {
  /**
   * `settings` are further lines of the `[server]` table, `app` further lines of the app's. The
   * metrics have no port of their own, so that servers can run side by side.
   */
  static async start({ port, settings = '', app = '', key = 'tests-key', grace = '1s' } = {}) {
    // A program that knows nothing of these tests may take it before: then try the next one.
    for (let attempt = 1; ; attempt += 1) {
      const server = new Server(port ?? (await freePort()), `shutdown_grace = "${grace}"\n${settings}`, app, key);
      if (await server.ready()) return server;
      const taken = /in use/i.test(server.log);
      if (!taken || port || attempt === 3) {
        throw new Error(`the server did not start (${server.ending()}):\n${server.log}`);
      }
    }
  }

  constructor(port, settings, app, key) {
    this.host = HOST;
    this.port = port;
    this.origin = `http://${HOST}:${port}`;
    this.id = '3101';
    this.key = key;
    this.secret = 'tests-secret';
    this.log = '';
    this.folder = mkdtempSync(join(tmpdir(), 'fanfare-node-'));
    const file = join(this.folder, 'fanfare.toml');
    writeFileSync(
      file,
      `[server]\nhost = "${HOST}"\nport = ${port}\n${settings}\n\n` +
        `[metrics]\nport = 0\n\n` +
        `[[apps]]\nid = "${this.id}"\nkey = "${this.key}"\nsecret = "${this.secret}"\n${app}\n`,
    );
    this.child = spawn(BINARY, ['--config', file], {
      cwd: this.folder,
      env: { PATH: process.env.PATH, RUST_BACKTRACE: '1', ...redis(port) },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    RUNNING.add(this.child);
    for (const stream of [this.child.stdout, this.child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => (this.log += text));
    }
    this.ended = new Promise((ended) => {
      this.child.once('error', (error) => {
        this.log += `${BINARY}: ${error.message}`;
        ended({ code: null, signal: null });
      });
      this.child.once('close', (code, signal) => ended({ code, signal }));
    }).then((ending) => {
      RUNNING.delete(this.child);
      rmSync(this.folder, { recursive: true, force: true });
      return (this.last = ending);
    });
  }

  ending() {
    return this.last ? `code ${this.last.code}, signal ${this.last.signal}` : 'running';
  }

  /** Whether `GET /up` answers 200; false once the process has ended. */
  async ready() {
    await until(`${this.origin}/up answers`, async () => {
      if (this.last) return true;
      const answer = await fetch(`${this.origin}/up`).catch(() => undefined);
      return answer?.status === 200;
    });
    return !this.last;
  }

  /** Asks the server to leave, as an init system does, and holds it to a clean end. */
  async stop() {
    this.child.kill('SIGTERM');
    const overdue = setTimeout(() => this.child.kill('SIGKILL'), 30_000);
    const ending = await this.ended;
    clearTimeout(overdue);
    assert.deepEqual(ending, { code: 0, signal: null }, `the server's end\n${this.log}`);
    assert.doesNotMatch(this.log, /panicked/, 'the server panicked');
  }
}
