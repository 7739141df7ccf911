// A real browser for a test file: pages whose complaints are collected, and a site of another origin that serves
// the web builds of the client libraries.

import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { after, before } from 'node:test';

import { chromium } from 'playwright-core';

/** A browser that is open from before the first test of the file until after the last. */
export function browse() {
  let browser;
  before(async () => {
    browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
      // As browsers are: pages that are left are kept with their sockets.
      ignoreDefaultArgs: ['--disable-back-forward-cache'],
      args: [
        // Chromium has no sandbox for root; all it opens here are pages of this machine.
        ...(process.getuid() === 0 ? ['--no-sandbox'] : []),
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
      ],
    });
  });
  after(() => browser?.close());
  return {
    context: () => browser.newContext(),

    /** A fresh page whose complaints (console errors, exceptions) are collected. */
    async open(url) {
      const context = await browser.newContext();
      const page = await context.newPage();
      page.complaints = [];
      page.on('pageerror', (error) => page.complaints.push(String(error)));
      page.on('console', (message) => {
        if (message.type() === 'error') page.complaints.push(message.text());
      });
      await page.goto(url);
      return page;
    },
  };
}

/** The text of a file of an npm package, by its path: `pusher-js/dist/web/pusher.js`. */
export function packaged(path) {
  // Some packages export only what is imported, so the file is looked up where npm has put it.
  return readFileSync(new URL(`node_modules/${path}`, import.meta.url), 'utf8');
}

/** A web site on `localhost`, which is another origin than the server's 127.0.0.1: an empty page and `files` beside it. */
export class Site {
  static async start(files) {
    const site = new Site();
    const page = '<!doctype html><meta charset="utf-8"><title>A site</title><link rel="icon" href="data:,">';
    const all = { '/': page, ...files };
    site.http = createServer(({ url }, response) => {
      const type = url.endsWith('.js') ? 'text/javascript' : 'text/html';
      response.writeHead(all[url] ? 200 : 404, { 'Content-Type': type });
      response.end(all[url]);
    });
    await new Promise((listening) => site.http.listen(0, 'localhost', listening));
    site.origin = `http://localhost:${site.http.address().port}`;
    return site;
  }

  stop() {
    this.http.closeAllConnections();
    this.http.close();
  }
}
