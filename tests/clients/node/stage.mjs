// A test file's whole stage in one call: server, application, backend SDK, and clients that are
// closed when the file is done. The server must end cleanly, whatever the tests did to it.

import { after, before } from 'node:test';

import { Application } from './application.mjs';
import { backend, Clients } from './clients.mjs';
import { freePort, Server } from './server.mjs';

/** Filled before the first test of the file that calls this. */
export function stage(options) {
  return staged(async (stage) => {
    stage.server = await Server.start(options);
    stage.application = await Application.start(stage.server);
  });
}

/** The same for clients of Socket.IO, about whom the server asks the application, which has to be there first. */
export function socketIoStage() {
  return staged(async (stage) => {
    const port = await freePort();
    const app = { id: '3101', key: 'tests-key', secret: 'tests-secret', host: '127.0.0.1', port };
    stage.application = await Application.start(app);
    stage.server = await Server.start({
      port,
      app: `socketio = { enabled = true, auth_url = "${stage.application.channelEndpoint}" }`,
    });
  });
}

function staged(start) {
  const stage = {};
  before(async () => {
    await start(stage);
    stage.backend = backend(stage.server);
    stage.clients = new Clients(stage.server, stage.application);
  });
  after(async () => {
    stage.clients?.close();
    await stage.application?.stop();
    await stage.server?.stop();
  });
  return stage;
}
