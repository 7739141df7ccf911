// The application's own server in these tests: it knows its users by bearer tokens or cookies and signs their
// subscriptions with the npm `pusher` SDK, as a backend does in its auth routes.

import { createServer } from 'node:http';

import { backend } from './clients.mjs';

const USERS = {
  ann: { user_id: '1', user_info: { name: 'Ann', nick: 'Änn "☕" 🚀' } },
  ben: { user_id: '2', user_info: { name: 'Ben' } },
  cleo: { user_id: '3', user_info: { name: 'Cleo' } },
};

/** A channel with this in its name is nobody's business. */
export const SECRET = 'classified';

export class Application {
  static async start(server) {
    const application = new Application(server);
    await new Promise((listening) => application.http.listen(0, '127.0.0.1', listening));
    const origin = `http://127.0.0.1:${application.http.address().port}`;
    application.channelEndpoint = `${origin}/broadcasting/auth`;
    application.userEndpoint = `${origin}/broadcasting/user-auth`;
    return application;
  }

  constructor(server) {
    this.sdk = backend(server);
    this.http = createServer((request, response) => {
      this.answer(request).then(
        ({ status, body }) => {
          response.writeHead(status, {
            'Content-Type': 'application/json',
            'Access-Control-Allow-Origin': '*',
            'Access-Control-Allow-Headers': '*',
          });
          response.end(JSON.stringify(body));
        },
        () => response.writeHead(500).end(),
      );
    });
  }

  user(name) {
    return USERS[name];
  }

  token(name) {
    return `token-of-${name}`;
  }

  async answer(request) {
    if (request.method === 'OPTIONS') return { status: 200, body: {} };
    const { authorization, cookie } = request.headers;
    const user = Object.keys(USERS).find(
      (name) =>
        authorization === `Bearer ${this.token(name)}` || cookie === `session=${this.token(name)}`,
    );
    const form = new URLSearchParams(await text(request));
    const socket = form.get('socket_id');
    const channel = form.get('channel_name');
    if (!user || channel?.includes(SECRET)) return { status: 403, body: { message: 'Forbidden' } };
    if (request.url === '/broadcasting/user-auth') {
      const { user_id: id, user_info } = USERS[user];
      return { status: 200, body: this.sdk.authenticateUser(socket, { id, user_info }) };
    }
    const member = channel.startsWith('presence-') ? USERS[user] : undefined;
    return { status: 200, body: this.sdk.authorizeChannel(socket, channel, member) };
  }

  stop() {
    this.http.closeAllConnections();
    return new Promise((stopped) => this.http.close(stopped));
  }
}

async function text(request) {
  let body = '';
  for await (const piece of request.setEncoding('utf8')) body += piece;
  return body;
}
