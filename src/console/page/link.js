// A client's connection, by WebSocket or, as pusher-js does where those are blocked, by HTTP requests.

import { readLines, root } from './dom.js';

const ASKED = 'protocol=7&client=console&version=1.0.0';

export class Link {
  /** `take(link, text)` gets each message, `ended(link, code, reason)` the end, once. */
  constructor({ key, host, transport, take, ended }) {
    this.take = take;
    this.ended = ended;
    this.isOver = false;
    this.host = host;
    const path = `${root}/app/${encodeURIComponent(key)}`;
    if (transport === 'http') this.openHttp(path);
    else this.openSocket(path);
  }

  end(code, reason) {
    if (this.isOver) return;
    this.isOver = true;
    this.ended(this, code, reason);
  }

  openSocket(path) {
    const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:';
    this.socket = new WebSocket(`${scheme}//${this.host}${path}?${ASKED}`);
    this.socket.onopen = () => { this.extensions = this.socket.extensions; };
    this.socket.onmessage = ({ data }) => { if (!this.isOver) this.take(this, data); };
    this.socket.onclose = ({ code, reason }) => this.end(code, reason);
  }

  openHttp(path) {
    const letters = Array.from({ length: 8 }, () => '0123456789abcdefghijklmnopqrstuv'[Math.floor(Math.random() * 32)]);
    this.session = `${path}/${Math.floor(Math.random() * 1000)}/${letters.join('')}`;
    this.sending = Promise.resolve();
    this.abort = new AbortController();
    this.receive();
  }

  async receive() {
    while (!this.isOver) {
      try {
        const answer = await fetch(`${this.session}/xhr_streaming?${ASKED}`, { method: 'POST', signal: this.abort.signal });
        if (!answer.ok) return this.end(undefined, '');
        await readLines(answer, (line) => this.hear(line));
      } catch {
        return this.end(undefined, '');
      }
    }
    return undefined;
  }

  hear(line) {
    if (this.isOver) return;
    if (line === 'h') this.post([]);
    else if (line.startsWith('a')) for (const text of JSON.parse(line.slice(1))) this.take(this, text);
    else if (line.startsWith('c')) this.end(...JSON.parse(line.slice(1)));
  }

  /** One request after the other, so that what is said stays in its order. */
  post(texts) {
    const options = { method: 'POST', body: JSON.stringify(texts), signal: this.abort.signal };
    this.sending = this.sending.then(() => fetch(`${this.session}/xhr_send`, options)).catch(() => this.end(undefined, ''));
  }

  send(text) {
    if (this.isOver) return;
    if (this.session) this.post([text]);
    else if (this.socket.readyState === WebSocket.OPEN) this.socket.send(text);
  }

  close() {
    this.isOver = true;
    this.socket?.close();
    this.abort?.abort();
  }
}
