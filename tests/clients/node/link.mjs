// A link that breaks in the ways in which links do: the tests of resuming put it between clients and the server.

import { connect, createServer } from 'node:net';

/** A relay to `port`. */
export class Link {
  static async open(port) {
    const link = new Link();
    link.to = port;
    link.sockets = new Set();
    link.isUp = true;
    await link.listen(0);
    return link;
  }

  async listen(port) {
    this.server = createServer((near) => {
      if (!this.isUp) return near.resetAndDestroy();
      const far = connect(this.to, '127.0.0.1');
      for (const [one, other] of [[near, far], [far, near]]) {
        this.sockets.add(one);
        one.on('data', (bytes) => one.isDead || other.write(bytes));
        one.on('error', () => one.isDead || other.destroy());
        one.on('close', () => {
          this.sockets.delete(one);
          if (!one.isDead) other.destroy();
        });
      }
    });
    await new Promise((listening) => this.server.listen(port, '127.0.0.1', listening));
    this.port = this.server.address().port;
  }

  /** Resets every connection. */
  cut() {
    for (const socket of this.sockets) socket.resetAndDestroy();
  }

  /** Leaves every connection open to both sides and passes nothing on any more, not even its end. */
  freeze() {
    for (const socket of this.sockets) socket.isDead = true;
  }

  /** Is gone for so long: its connections, and whoever listens. */
  async goFor(ms) {
    this.cut();
    await new Promise((closed) => this.server.close(closed));
    await new Promise((later) => setTimeout(later, ms));
    await this.listen(this.port);
  }

  close() {
    this.cut();
    this.server.close();
  }
}
