// A WebSocket over HTTP/2 (RFC 8441) as browsers open it, with Node's own http2: prints how many of N connections were
// greeted, and how many refused ones were told why. Fails where any was not.
//
//   node client.mjs PORT N

import http2 from 'node:http2';

const [port, times] = process.argv.slice(2).map(Number);
const authority = `localhost:${port}`;
const session = http2.connect(`https://${authority}`, {
  rejectUnauthorized: false,
  lookup: (host, options, found) => found(null, options.all ? [{ address: '127.0.0.1', family: 4 }] : '127.0.0.1', 4),
});
session.on('error', (error) => fail(error.message));
const settings = await new Promise((heard) => session.once('remoteSettings', heard));
if (!settings.enableConnectProtocol) fail('the proxy takes no WebSockets over HTTP/2');

function fail(what) {
  console.error(`http2: ${what}`);
  process.exit(1);
}

/** Resolves once the stream has said `wanted`; it never says anything itself. */
function hear(key, wanted) {
  return new Promise((done) => {
    const stream = session.request(
      {
        ':method': 'CONNECT',
        ':protocol': 'websocket',
        ':scheme': 'https',
        ':authority': authority,
        ':path': `/app/${key}?protocol=7&client=js&version=8.6.0&flash=false`,
        'sec-websocket-version': '13',
      },
      { endStream: false },
    );
    let heard = '';
    let status;
    const late = setTimeout(() => fail(`${key}: status ${status}, then ${heard || 'nothing'}`), 5_000);
    stream.on('response', (headers) => (status = headers[':status']));
    stream.on('error', (error) => fail(`${key}: ${error.message}`));
    stream.on('data', (data) => {
      heard += data.toString('latin1');
      if (!heard.includes(wanted)) return;
      clearTimeout(late);
      stream.close();
      done();
    });
  });
}

for (let time = 0; time < times; time += 1) {
  await hear('key', 'connection_established');
  await hear('nobody', 'Application does not exist');
}
console.log(`http2: ${2 * times} WebSockets over HTTP/2 heard at once what they had to`);
session.close();
