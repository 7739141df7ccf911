// The parties of the tests: pusher-js and Echo as clients, the npm `pusher` SDK as the backend. Each
// is set up as its own documentation says for a self-hosted server.

import Echo from 'laravel-echo';
import Backend from 'pusher';
import Pusher from 'pusher-js';

import { next, until } from './waiting.mjs';

// A socket that pusher-js closes after the server already did leaves a timer of half a minute behind,
// and with it the whole test process. No long timer may hold it up.
const { setTimeout: timer } = globalThis;
globalThis.setTimeout = (callback, delay, ...rest) => {
  const set = timer(callback, delay, ...rest);
  return delay >= 30_000 ? set.unref() : set;
};

export const MASTER_KEY = Buffer.alloc(32, 'fanfare').toString('base64');

/** The backend's side of the app. */
export function backend(server, options = {}) {
  return new Backend({
    appId: server.id,
    key: server.key,
    secret: server.secret,
    host: server.host,
    port: server.port,
    useTLS: false,
    encryptionMasterKeyBase64: MASTER_KEY,
    ...options,
  });
}

/** How clients connect: the lane of the fallback repeats the tests of this folder over HTTP. */
export const TRANSPORT = process.env.TRANSPORT ?? 'ws';

/** What pusher-js needs to find `server`. */
export function address(server) {
  return {
    cluster: 'unused',
    wsHost: server.host,
    wsPort: server.port,
    httpHost: server.host,
    httpPort: server.port,
    forceTLS: false,
    enabledTransports: [TRANSPORT],
  };
}

/** How `user` asks the application's own server for signatures. */
export function authorization(application, user) {
  const headers = user ? { Authorization: `Bearer ${application.token(user)}` } : {};
  return {
    channelAuthorization: { transport: 'ajax', endpoint: application.channelEndpoint, headers },
    userAuthentication: { transport: 'ajax', endpoint: application.userEndpoint, headers },
  };
}

/** Every client opened, so that a test file can close them before it stops the server. */
export class Clients {
  constructor(server, application) {
    this.server = server;
    this.application = application;
    this.open = [];
  }

  /** A connected pusher-js client; `user` is known to the application. */
  async pusher({ user, library = Pusher, signing, ...options } = {}) {
    const client = new library(this.server.key, {
      ...address(this.server),
      ...(signing ?? authorization(this.application, user)),
      ...options,
    });
    this.open.push(client);
    await connected(client);
    return client;
  }

  /** A connected Echo, in the form that Laravel's documentation gives for `broadcaster`. */
  async echo({ user, broadcaster = 'reverb', library = Pusher, ...options } = {}) {
    const { cluster, ...reverb } = address(this.server);
    const echo = new Echo({
      broadcaster,
      Pusher: library,
      key: this.server.key,
      // For `reverb` Echo itself fills in the cluster that pusher-js insists on.
      ...(broadcaster === 'pusher' ? { cluster, ...reverb } : reverb),
      authEndpoint: this.application.channelEndpoint,
      // Echo adds to its own defaults in place: without fresh objects all Echos would share them.
      auth: { headers: {} },
      userAuthentication: { endpoint: this.application.userEndpoint, headers: {} },
      bearerToken: user ? this.application.token(user) : null,
      ...options,
    });
    this.open.push(echo);
    await connected(echo.connector.pusher);
    return echo;
  }

  close() {
    for (const client of this.open.splice(0)) client.disconnect();
  }
}

export function connected(client, deadline) {
  return until('connected', () => client.connection.state === 'connected', deadline);
}

/** Subscribes and resolves with the channel once the server has confirmed it. */
export async function subscribed(client, name) {
  const channel = client.subscribe(name);
  if (!channel.subscribed) await next(channel, 'pusher:subscription_succeeded');
  return channel;
}

/** What `channel` hears from now on, as `[event, data, metadata]`, without the protocol's own events. */
export function heard(channel) {
  const events = [];
  channel.bind_global((event, data) => {
    if (!event.startsWith('pusher:') && !event.startsWith('pusher_internal:')) {
      events.push([event, data]);
    }
  });
  return events;
}

/**
 * The frames that `client` receives from now on, as the text that came over the wire: what pusher-js
 * shows has gone through a JSON parser.
 */
export function frames(client) {
  const texts = [];
  transport(client).bind('message', ({ data }) => texts.push(data));
  return texts;
}

/** Resolves with the close event (`code`, `reason`) of the client's present socket. */
export function closing(client) {
  return next(transport(client), 'closed', 30_000);
}

function transport(client) {
  return client.connection.connection.transport;
}
