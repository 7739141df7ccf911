// Twenty clients of the server on a port that is given: says `subscribed` once all are, `heard` once each has had an
// event, and ends well if every one of them was sent away in order (4200) while events came.

import Pusher from 'pusher-js';

const [port] = process.argv.slice(2);
const clients = Array.from({ length: 20 }, () => {
  const client = new Pusher('key', {
    cluster: '',
    wsHost: '127.0.0.1',
    wsPort: Number(port),
    forceTLS: false,
    enabledTransports: ['ws'],
    disableStats: true,
  });
  return client;
});
const counts = { subscribed: 0, heard: 0, sent: 0 };
const all = (what) => {
  counts[what] += 1;
  if (counts[what] === clients.length) console.log(what);
};
for (const client of clients) {
  const channel = client.subscribe('load');
  channel.bind('pusher:subscription_succeeded', () => all('subscribed'));
  const hear = () => {
    channel.unbind('event', hear);
    all('heard');
  };
  channel.bind('event', hear);
  client.connection.bind('error', (error) => {
    const code = error?.error?.data?.code ?? error?.data?.code;
    if (code !== 4200) return;
    client.disconnect();
    all('sent');
    if (counts.sent === clients.length) process.exit(0);
  });
}
setTimeout(() => {
  console.log(JSON.stringify(counts));
  process.exit(1);
}, 180_000);
