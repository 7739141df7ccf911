"""permessage-deflate as `websockets` and aiohttp negotiate it."""

import asyncio
import json
import unittest

import aiohttp
import pusher
import websockets

from server import DEADLINE_S, Server

SIZES = (10, 600, 1500, 8_000)


class Compression(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(app="compression = true")
        cls.addClassCleanup(cls.server.stop)
        cls.backend = pusher.Pusher(
            app_id=cls.server.app_id,
            key=cls.server.key,
            secret=cls.server.secret,
            host=cls.server.host,
            port=cls.server.port,
            ssl=False,
        )

    def url(self):
        return f"ws://{self.server.host}:{self.server.port}/app/{self.server.key}?protocol=7"

    async def converse(self, say, hear, channel):
        """Subscribes by a long message, and hears what is published."""
        self.assertIn("connection_established", await hear())
        data = {"channel": channel, "padding": "x" * 2000}
        await say(json.dumps({"event": "pusher:subscribe", "data": data}))
        self.assertIn("subscription_succeeded", await hear())
        for size in SIZES:
            text = "Grüße 1, 2, 3 " * (size // 14 + 1)
            await asyncio.to_thread(self.backend.trigger, channel, "e", {"text": text})
            heard = json.loads(json.loads(await hear())["data"])
            self.assertEqual(heard, {"text": text})

    def test_websockets(self):
        async def run():
            async with websockets.connect(self.url(), compression="deflate", max_size=None) as socket:
                self.assertIn("permessage-deflate", socket.response.headers["Sec-WebSocket-Extensions"])
                hear = lambda: asyncio.wait_for(socket.recv(), DEADLINE_S)
                await self.converse(socket.send, hear, "of-websockets")

        asyncio.run(run())

    def test_aiohttp(self):
        async def run():
            async with aiohttp.ClientSession() as session:
                async with session.ws_connect(self.url(), compress=15, max_msg_size=0) as socket:
                    self.assertTrue(socket.compress)
                    hear = lambda: socket.receive_str(timeout=DEADLINE_S)
                    await self.converse(socket.send_str, hear, "of-aiohttp")

        asyncio.run(run())


if __name__ == "__main__":
    unittest.main()
