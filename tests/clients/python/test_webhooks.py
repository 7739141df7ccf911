"""Webhooks as PyPI `pusher` takes them: it checks the key, the signature and the time."""

import http.server
import queue
import threading
import unittest

import pusher
import pysher

from server import DEADLINE_S, Server, until


class Webhooks(unittest.TestCase):
    def setUp(self):
        requests = self.requests = queue.Queue()

        class Endpoint(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests.put((dict(self.headers), body.decode()))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        endpoint = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        endpoint.daemon_threads = True
        self.addCleanup(endpoint.server_close)
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        self.addCleanup(endpoint.shutdown)
        url = f"http://127.0.0.1:{endpoint.server_port}/"
        self.server = Server(app=f'[[apps.webhooks]]\nurl = "{url}"\n')
        self.addCleanup(self.server.stop)

    def test_w09_the_sdk_takes_a_webhook_for_genuine(self):
        client = pysher.Pusher(
            self.server.key, secure=False, custom_host=self.server.host, port=self.server.port
        )
        client.connect()
        self.addCleanup(client.disconnect, timeout=1)
        until("Pysher is connected", lambda: client.connection.state == "connected")
        client.subscribe("hooked")
        headers, body = self.requests.get(timeout=DEADLINE_S)
        # Names of headers have no case; frameworks give them to the SDK as they like.
        headers = {name.lower(): value for name, value in headers.items()}
        key, signature = headers["x-pusher-key"], headers["x-pusher-signature"]
        backend = pusher.Pusher(
            app_id=self.server.app_id, key=self.server.key, secret=self.server.secret
        )
        webhook = backend.validate_webhook(key, signature, body)
        self.assertEqual(webhook["events"], [{"name": "channel_occupied", "channel": "hooked"}])
        self.assertIsNone(backend.validate_webhook(key, signature, body + " "))


if __name__ == "__main__":
    unittest.main()
