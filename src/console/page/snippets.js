// Lines to copy for backends and clients, with the address that this browser came by. No secret is among them.

const SECRET = 'THE_SECRET_OF_THE_APP';

/** Where clients find the server: as this page did. */
export function address(root) {
  const isTls = location.protocol === 'https:';
  const port = Number(location.port) || (isTls ? 443 : 80);
  return { host: location.hostname, port, isTls, scheme: isTls ? 'https' : 'http', path: root };
}

/** Host and port of the sockets, which have an address of their own where the API has. */
export function socketsHost(state) {
  return state.sockets_port ? `${location.hostname}:${state.sockets_port}` : location.host;
}

const quoted = (text) => JSON.stringify(text);
const php = (text) => `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;

/** How backends send an event, by language. */
export function snippets(app, root) {
  const { host, port, isTls, scheme, path } = address(root);
  return {
    php: ({ name, channel, data }) => `// composer require pusher/pusher-php-server
$pusher = new Pusher\\Pusher(${php(app.key)}, getenv('PUSHER_APP_SECRET'), ${php(app.id)}, [
    'host' => ${php(host)}, 'port' => ${port}, 'scheme' => '${scheme}', 'useTLS' => ${isTls},${path ? ` 'path' => ${php(path)},` : ''}
]);
$pusher->trigger(${php(channel)}, ${php(name)}, ${php(data)}, [], true);`,
    node: ({ name, channel, data }) => `// npm install pusher
import Pusher from 'pusher';

const pusher = new Pusher({
  appId: ${quoted(app.id)}, key: ${quoted(app.key)}, secret: process.env.PUSHER_APP_SECRET,
  host: ${quoted(host)}, port: '${port}', useTLS: ${isTls},
});
await pusher.trigger(${quoted(channel)}, ${quoted(name)}, ${quoted(data)});`,
    python: ({ name, channel, data }) => `# pip install pusher
import os, pusher

client = pusher.Pusher(
    app_id=${quoted(app.id)}, key=${quoted(app.key)}, secret=os.environ["PUSHER_APP_SECRET"],
    host=${quoted(host)}, port=${port}, ssl=${isTls ? 'True' : 'False'},
)
client.trigger(${quoted(channel)}, ${quoted(name)}, ${quoted(data)})`,
  };
}

/** How clients and apps are connected: title, hint and lines of each. */
export function connections(app, root, state) {
  const { host, port: own, isTls, scheme, path } = address(root);
  const port = state.sockets_port ?? own;
  const ws = isTls ? 'wss' : 'ws';
  const shown = host.includes(':') ? `[${host}]` : host;
  return [
    ['.env of a Laravel app', 'For Reverb’s broadcaster, which comes with Laravel 11 and later.',
      `BROADCAST_CONNECTION=reverb
REVERB_APP_ID=${app.id}
REVERB_APP_KEY=${app.key}
REVERB_APP_SECRET=${SECRET}
REVERB_HOST=${host}
REVERB_PORT=${own}
REVERB_SCHEME=${scheme}${path ? `\nREVERB_SERVER_PATH=${path}` : ''}
VITE_REVERB_APP_KEY="\${REVERB_APP_KEY}"
VITE_REVERB_HOST="\${REVERB_HOST}"
VITE_REVERB_PORT="${port === own ? '\${REVERB_PORT}' : port}"
VITE_REVERB_SCHEME="\${REVERB_SCHEME}"`],
    ['Laravel Echo', 'npm install laravel-echo pusher-js',
      `import Echo from 'laravel-echo';
import Pusher from 'pusher-js';

window.Pusher = Pusher;
window.Echo = new Echo({
  broadcaster: 'reverb',
  key: ${quoted(app.key)},
  wsHost: ${quoted(host)},
  wsPort: ${port},
  wssPort: ${port},${path ? `\n  wsPath: ${quoted(path)},` : ''}
  forceTLS: ${isTls},
  enabledTransports: ['ws', 'wss'],
});
Echo.channel('my-channel').listen('.greeting', (data) => console.log(data));`],
    ['pusher-js', 'npm install pusher-js',
      `import Pusher from 'pusher-js';

const pusher = new Pusher(${quoted(app.key)}, {
  cluster: '',
  wsHost: ${quoted(host)},
  wsPort: ${port},
  wssPort: ${port},${path ? `\n  wsPath: ${quoted(path)},` : ''}
  forceTLS: ${isTls},
  enabledTransports: ['ws', 'wss'],
});
pusher.subscribe('my-channel').bind('greeting', (data) => console.log(data));`],
    ['Flutter', 'dart_pusher_channels, which takes any host.',
      `final client = PusherChannelsClient.websocket(
  options: PusherChannelsOptions.fromHost(
    scheme: '${ws}', host: ${quoted(host)}, port: ${port}, key: ${quoted(app.key)},
    shouldSupplyMetadataQueries: true, metadata: PusherChannelsOptionsMetadata.byDefault(),
  ),
  connectionErrorHandler: (exception, trace, refresh) => refresh(),
);
final channel = client.publicChannel('my-channel');
client.onConnectionEstablished.listen((_) => channel.subscribeIfNotUnsubscribed());
channel.bind('greeting').listen((event) => print(event.data));
client.connect();`],
    ['Swift', 'PusherSwift',
      `let options = PusherClientOptions(host: .host(${quoted(host)}), port: ${port}, ${path ? `path: ${quoted(path)}, ` : ''}useTLS: ${isTls})
let pusher = Pusher(key: ${quoted(app.key)}, options: options)
let channel = pusher.subscribe("my-channel")
channel.bind(eventName: "greeting") { (event: PusherEvent) in print(event.data ?? "") }
pusher.connect()`],
    ['Kotlin', 'pusher-java-client',
      `val options = PusherOptions().setHost(${quoted(host)}).setWsPort(${port}).setWssPort(${port}).setUseTLS(${isTls})
val pusher = Pusher(${quoted(app.key)}, options)
pusher.connect()
pusher.subscribe("my-channel").bind("greeting") { event -> println(event.data) }`],
    ['wscat', 'npx wscat: then paste {"event":"pusher:subscribe","data":{"channel":"my-channel"}}',
      `npx wscat -c '${ws}://${shown}:${port}${path}/app/${app.key}?protocol=7'`],
  ];
}
