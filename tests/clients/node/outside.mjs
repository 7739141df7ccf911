// What a container finds outside of itself: a server of names, and an HTTPS endpoint under one of them that takes
// webhooks. Says where the endpoint is, which names it was asked for, and which events have come.
//
//   node outside.mjs ADDRESS NAME CERTIFICATE KEY

import { createSocket } from 'node:dgram';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';

const [address, known, cert, key] = process.argv.slice(2);
const A = 1;

const names = createSocket('udp4');
names.on('message', (question, { port, address: asker }) => {
  const labels = [];
  let at = 12;
  while (question[at] > 0) {
    labels.push(question.toString('latin1', at + 1, at + 1 + question[at]));
    at += question[at] + 1;
  }
  const [name, type] = [labels.join('.').toLowerCase(), question.readUInt16BE(at + 1)];
  const header = Buffer.from(question.subarray(0, 12));
  const isKnown = name === known;
  // An answer, authoritative, to a question that wanted recursion; a name that there is not is said to be none.
  header.writeUInt16BE(isKnown ? 0x8580 : 0x8583, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(isKnown && type === A ? 1 : 0, 6);
  header.writeUInt32BE(0, 8);
  const answer = Buffer.from([0xc0, 12, 0, A, 0, 1, 0, 0, 0, 60, 0, 4, ...address.split('.').map(Number)]);
  const parts = [header, question.subarray(12, at + 5)];
  if (isKnown && type === A) parts.push(answer);
  names.send(Buffer.concat(parts), port, asker);
  console.log(`asked for ${name}`);
});

const endpoint = createServer({ cert: readFileSync(cert), key: readFileSync(key) }, (request, answer) => {
  let body = '';
  request.on('data', (part) => (body += part));
  request.on('end', () => {
    for (const { name } of JSON.parse(body).events) console.log(`heard ${name} as ${request.headers.host}`);
    answer.end();
  });
});

names.bind(53, address, () => {
  endpoint.listen(0, address, () => console.log(`port ${endpoint.address().port}`));
});
