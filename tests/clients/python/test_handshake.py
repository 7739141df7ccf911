"""aiohttp, which compares the answer to its handshake to the letter, at a server that stops."""

import asyncio
import signal
import unittest

import aiohttp

from server import DEADLINE_S, Server, until


class Handshake(unittest.TestCase):
    def test_a_server_that_stops_takes_the_handshake(self):
        server = Server(settings='workers = 1\nshutdown_grace = "20s"')
        self.addCleanup(server.stop)
        asyncio.run(self.converse(server))

    async def converse(self, server):
        url = f"ws://{server.host}:{server.port}/app/{server.key}?protocol=7"
        # It opens no more than a hundred unless it is told.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            # They are sent away one after the other, forty a second: as long as that takes, the server is there.
            others = [await session.ws_connect(url) for _ in range(200)]
            server.child.send_signal(signal.SIGTERM)
            until("it stops", lambda: "stopping" in server.said())
            socket = await session.ws_connect(url)
            refusal = (await socket.receive()).json()
            self.assertEqual(refusal["data"], {"code": 4100, "message": "Server is stopping"})
            closed = await socket.receive()
            self.assertEqual((closed.type, closed.data), (aiohttp.WSMsgType.CLOSE, 4100))
            for other in others:
                await other.close()
        server.child.wait(timeout=DEADLINE_S)


if __name__ == "__main__":
    unittest.main()
