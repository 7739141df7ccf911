// A proxy that passes requests on and cuts WebSockets, as those of hotels and companies do.

import { createServer, request } from 'node:http';

/** In front of `server()`, which is asked for each request. Resolves with its `port` and how to `close` it. */
export async function cutsWebSockets(server) {
  const proxy = createServer((incoming, outgoing) => {
    const { method, url: path, headers } = incoming;
    const { host, port } = server();
    const onward = request({ host, port, method, path, headers }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      answer.pipe(outgoing);
    });
    onward.on('error', () => outgoing.destroy());
    outgoing.on('close', () => onward.destroy());
    incoming.pipe(onward);
  });
  proxy.on('upgrade', (_, socket) => socket.destroy());
  await new Promise((listening) => proxy.listen(0, '127.0.0.1', listening));
  const close = () => {
    proxy.close();
    proxy.closeAllConnections();
  };
  return { port: proxy.address().port, close };
}
