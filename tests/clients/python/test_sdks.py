"""PyPI `pusher` as the backend of an app and Pysher as its client."""

import json
import queue
import unittest

import pusher
import pusher.errors
import pysher

from server import DEADLINE_S, Server, until


class Lane(unittest.TestCase):
    """One server for all tests of a class; clients are closed after each test."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.stop)
        cls.backend = cls.sdk()

    @classmethod
    def sdk(cls, **changed):
        options = {"app_id": cls.server.app_id, "key": cls.server.key, "secret": cls.server.secret}
        options |= {"ssl": False, "host": cls.server.host, "port": cls.server.port}
        return pusher.Pusher(**(options | changed))

    def client(self, user=None):
        """A connected Pysher that signs for itself, as its README shows."""
        client = pysher.Pusher(
            self.server.key,
            secure=False,
            secret=self.server.secret,
            custom_host=self.server.host,
            port=self.server.port,
            user_data=user,
        )
        client.connect()
        # Its thread may miss the very close that it asked for; it does not outlive the process anyway.
        self.addCleanup(client.disconnect, timeout=1)
        until("Pysher is connected", lambda: client.connection.state == "connected")
        return client

    def subscribed(self, client, name, *events):
        """Subscribes, waits for the server's word, returns the queue that `events` arrive in."""
        heard = queue.Queue()
        # The handlers can only be bound after the request is sent: the answer may be quicker.
        # So the subscription counts as confirmed when the API says so.
        before = self.subscriptions(name)
        channel = client.subscribe(name)
        for event in events:
            channel.bind(event, lambda data, event=event: heard.put((event, data)))
        until(f"{name} has one more", lambda: self.subscriptions(name) == before + 1)
        return heard

    def subscriptions(self, name):
        answer = self.backend.channel_info(name, ["subscription_count"])
        return answer.get("subscription_count", 0)


class Clients(Lane):
    """Pysher 1.0.8."""

    def test_public_private_and_presence_events_arrive(self):
        client = self.client(user={"user_id": "7", "user_info": {"name": "Grüße"}})
        for name in ("python", "private-python", "presence-python"):
            with self.subTest(name):
                heard = self.subscribed(client, name, "e")
                self.assertEqual(self.backend.trigger(name, "e", {"text": "Grüße 🚀"}), {})
                event, data = heard.get(timeout=DEADLINE_S)
                self.assertEqual((event, json.loads(data)), ("e", {"text": "Grüße 🚀"}))

    def test_member_added_and_removed(self):
        ann = self.client(user={"user_id": "1", "user_info": {"name": "Ann"}})
        notices = [f"pusher_internal:member_{what}" for what in ("added", "removed")]
        heard = self.subscribed(ann, "presence-members", *notices)
        ben = self.client(user={"user_id": "2", "user_info": {"name": "Ben"}})
        self.subscribed(ben, "presence-members")
        event, data = heard.get(timeout=DEADLINE_S)
        self.assertEqual(event, notices[0])
        self.assertEqual(json.loads(data), {"user_id": "2", "user_info": {"name": "Ben"}})
        ben.unsubscribe("presence-members")
        event, data = heard.get(timeout=DEADLINE_S)
        self.assertEqual((event, json.loads(data)), (notices[1], {"user_id": "2"}))

    def test_client_events_reach_the_others(self):
        ann, ben = self.client(), self.client()
        own = self.subscribed(ann, "private-chat", "client-typing", "fence")
        heard = self.subscribed(ben, "private-chat", "client-typing")
        ann.channel("private-chat").trigger("client-typing", {"n": 1})
        event, data = heard.get(timeout=DEADLINE_S)
        self.assertEqual((event, json.loads(data)), ("client-typing", {"n": 1}))
        self.backend.trigger("private-chat", "fence", {})
        self.assertEqual(own.get(timeout=DEADLINE_S)[0], "fence")

    def test_a_refused_subscription_is_told(self):
        client = self.client()
        errors = queue.Queue()
        client.connection.bind("pusher:error", errors.put)
        client.subscribe("private-forged", auth=f"{self.server.key}:{'0' * 64}")
        error = errors.get(timeout=DEADLINE_S)
        self.assertEqual(error["code"], 4009)
        self.assertIsInstance(error["message"], str)
        # To Pysher any 40xx is the end, as it is with other servers of the protocol.
        until("Pysher has left", lambda: not client.connection.is_alive())

    def test_the_pong_is_understood(self):
        client = self.client()
        until("Pysher's first ping is answered", lambda: client.connection.pong_received)


class Backend(Lane):
    """PyPI `pusher` 3.3.4."""

    def test_batches(self):
        heard = self.subscribed(self.client(), "batch", "e0", "e1", "e2")
        batch = [{"channel": "batch", "name": f"e{n}", "data": {"n": n}} for n in range(3)]
        self.assertIsInstance(self.backend.trigger_batch(batch), dict)
        arrived = [heard.get(timeout=DEADLINE_S) for _ in range(3)]
        self.assertEqual([event for event, _ in arrived], ["e0", "e1", "e2"])
        self.assertEqual([json.loads(data) for _, data in arrived], [{"n": n} for n in range(3)])

    def test_a_hundred_channels_and_an_excluded_socket(self):
        sender, other = self.client(), self.client()
        own = self.subscribed(sender, "hundred-0", "e", "fence")
        heard = self.subscribed(other, "hundred-0", "e")
        names = [f"hundred-{n}" for n in range(100)]
        self.backend.trigger(names, "e", "text", sender.connection.socket_id)
        self.assertEqual(heard.get(timeout=DEADLINE_S), ("e", "text"))
        self.backend.trigger("hundred-0", "fence", {})
        self.assertEqual(own.get(timeout=DEADLINE_S)[0], "fence")

    def test_channels_channel_and_users(self):
        for user in ("1", "1", "2"):
            self.subscribed(self.client(user={"user_id": user}), "presence-asked")
        channels = self.backend.channels_info("presence-asked", ["user_count"])
        self.assertEqual(channels, {"channels": {"presence-asked": {"user_count": 2}}})
        self.assertEqual(self.backend.channels_info("nobody-"), {"channels": {}})
        channel = self.backend.channel_info("presence-asked", ["user_count", "subscription_count"])
        self.assertEqual(channel, {"occupied": True, "user_count": 2, "subscription_count": 3})
        users = self.backend.users_info("presence-asked")["users"]
        self.assertEqual(sorted(user["id"] for user in users), ["1", "2"])

    def test_wrong_credentials(self):
        with self.assertRaises(pusher.errors.PusherBadAuth):
            self.sdk(secret="wrong").trigger("c", "e", {})
        with self.assertRaises(pusher.errors.PusherBadRequest):
            self.backend.users_info("not-a-presence-channel")

    def test_ending_the_connections_of_a_user(self):
        client = self.client(user={"user_id": "9"})
        self.subscribed(client, "presence-kick")
        self.assertEqual(self.backend.terminate_user_connections("9"), {})
        until("Pysher has left", lambda: not client.connection.is_alive())


if __name__ == "__main__":
    unittest.main()
