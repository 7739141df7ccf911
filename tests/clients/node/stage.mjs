// A test file's whole stage in one call: server, application, backend SDK, and clients that are
// closed when the file is done. The server must end cleanly, whatever the tests did to it.

import { after, before } from 'node:test';

import { Application } from './application.mjs';
import { backend, Clients } from './clients.mjs';
import { Server } from './server.mjs';

/** Filled before the first test of the file that calls this. */
export function stage(options) {
  const stage = {};
  before(async () => {
    stage.server = await Server.start(options);
    stage.application = await Application.start(stage.server);
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
