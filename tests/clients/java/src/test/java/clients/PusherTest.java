package clients;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.pusher.client.Pusher;
import com.pusher.client.PusherOptions;
import com.pusher.client.channel.PresenceChannelEventListener;
import com.pusher.client.channel.PrivateChannelEventListener;
import com.pusher.client.channel.PusherEvent;
import com.pusher.client.channel.User;
import com.pusher.client.connection.ConnectionEventListener;
import com.pusher.client.connection.ConnectionState;
import com.pusher.client.connection.ConnectionStateChange;
import com.pusher.rest.data.Event;
import com.pusher.rest.data.PresenceUser;
import com.pusher.rest.data.Result;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** pusher-java-client as the client (Android's too) and pusher-http-java as the backend. */
class PusherTest {
    private static Server server;
    private static com.pusher.rest.Pusher backend;
    private final List<Pusher> open = new ArrayList<>();

    @BeforeAll
    static void start() throws Exception {
        server = Server.start();
        backend = new com.pusher.rest.Pusher(Server.ID, Server.KEY, Server.SECRET);
        backend.setHost(server.address());
        backend.setEncrypted(false);
    }

    @AfterAll
    static void stop() throws Exception {
        backend.close();
        server.close();
    }

    @AfterEach
    void disconnect() {
        open.forEach(Pusher::disconnect);
    }

    /** Notes everything it is told, as a line each. */
    private static final class Listener implements PresenceChannelEventListener {
        final BlockingQueue<String> said = new LinkedBlockingQueue<>();
        final BlockingQueue<PusherEvent> events = new LinkedBlockingQueue<>();

        /**
         * Waits for this line. Others are passed over: a client that subscribes in the very moment in which
         * it is connected asks twice, and is answered twice.
         */
        void hears(String line) throws InterruptedException {
            while (!in(said).equals(line)) continue;
        }

        @Override
        public void onEvent(PusherEvent event) {
            events.add(event);
        }

        @Override
        public void onSubscriptionSucceeded(String channel) {
            said.add("subscribed " + channel);
        }

        @Override
        public void onAuthenticationFailure(String message, Exception reason) {
            said.add("refused");
        }

        @Override
        public void onUsersInformationReceived(String channel, Set<User> users) {
            var ids = new TreeSet<String>();
            users.forEach(user -> ids.add(user.getId()));
            said.add("here " + ids);
        }

        @Override
        public void userSubscribed(String channel, User user) {
            said.add("joined " + user.getId() + " " + user.getInfo(Map.class).get("name"));
        }

        @Override
        public void userUnsubscribed(String channel, User user) {
            said.add("left " + user.getId());
        }
    }

    private static <T> T in(BlockingQueue<T> queue) throws InterruptedException {
        var next = queue.poll(Server.DEADLINE.toSeconds(), TimeUnit.SECONDS);
        assertNotNull(next, "nothing came in time");
        return next;
    }

    /** A connected client whose subscriptions the SDK signs, for the numeric user id given. */
    private Pusher client(int user) throws InterruptedException {
        var options = new PusherOptions().setUseTLS(false).setHost("127.0.0.1").setWsPort(server.port);
        options.setChannelAuthorizer((channel, socket) -> channel.startsWith("presence-")
            ? backend.authenticate(socket, channel, new PresenceUser(user, Map.of("name", "Grüße")))
            : backend.authenticate(socket, channel));
        var client = new Pusher(Server.KEY, options);
        var connected = new LinkedBlockingQueue<ConnectionState>();
        client.connect(new ConnectionEventListener() {
            @Override
            public void onConnectionStateChange(ConnectionStateChange change) {
                connected.add(change.getCurrentState());
            }

            @Override
            public void onError(String message, String code, Exception reason) {}
        }, ConnectionState.CONNECTED);
        open.add(client);
        assertEquals(ConnectionState.CONNECTED, in(connected));
        return client;
    }

    private static void trigger(String channel, String event, Object data) {
        done(backend.trigger(channel, event, data));
    }

    private static String done(Result result) {
        assertEquals(Result.Status.SUCCESS, result.getStatus(), result.getMessage());
        return result.getMessage();
    }

    @Test
    void publicAndPrivateChannels() throws Exception {
        var client = client(1);
        var listener = new Listener();
        client.subscribe("java", listener, "e");
        listener.hears("subscribed java");
        trigger("java", "e", Map.of("text", "Grüße 🚀"));
        assertEquals("{\"text\":\"Grüße 🚀\"}", in(listener.events).getData());

        client.subscribePrivate("private-java", listener, "e");
        listener.hears("subscribed private-java");
        done(backend.trigger(List.of("private-java", "elsewhere"), "e", "text"));
        assertEquals("private-java", in(listener.events).getChannelName());
    }

    @Test
    void whispersReachTheOthersOnly() throws Exception {
        var one = new Listener();
        var other = new Listener();
        var sender = client(1).subscribePrivate("private-chat", (PrivateChannelEventListener) one, "client-typing", "fence");
        client(2).subscribePrivate("private-chat", (PrivateChannelEventListener) other, "client-typing");
        one.hears("subscribed private-chat");
        other.hears("subscribed private-chat");
        sender.trigger("client-typing", "{\"n\":1}");
        assertEquals("{\"n\":1}", in(other.events).getData());
        trigger("private-chat", "fence", "");
        assertEquals("fence", in(one.events).getEventName());
    }

    @Test
    void presenceOfNumericUsers() throws Exception {
        var ann = new Listener();
        client(10).subscribePresence("presence-java", ann);
        ann.hears("here [10]");
        var ben = new Listener();
        var client = client(20);
        client.subscribePresence("presence-java", ben);
        ann.hears("joined 20 Grüße");
        ben.hears("here [10, 20]");
        client.unsubscribe("presence-java");
        ann.hears("left 20");
    }

    @Test
    void batchesAndExcludedSockets() throws Exception {
        var client = client(1);
        var listener = new Listener();
        client.subscribe("batch", listener, "e1", "e2", "fence");
        listener.hears("subscribed batch");
        done(backend.trigger(List.of(new Event("batch", "e1", "1"), new Event("batch", "e2", "2"))));
        assertEquals("e1", in(listener.events).getEventName());
        assertEquals("e2", in(listener.events).getEventName());
        done(backend.trigger("batch", "e1", "", client.getConnection().getSocketId()));
        trigger("batch", "fence", "");
        assertEquals("fence", in(listener.events).getEventName());

        var hundred = IntStream.range(0, 100).mapToObj(index -> "hundred-" + index).toList();
        assertEquals("{}", done(backend.trigger(hundred, "e", "")));
    }

    @Test
    void questions() throws Exception {
        for (int user : new int[] {1, 1, 2}) {
            var listener = new Listener();
            client(user).subscribePresence("presence-asked", listener);
            listener.hears("subscribed presence-asked");
        }
        var params = Map.of("filter_by_prefix", "presence-asked", "info", "user_count");
        assertEquals("{\"channels\":{\"presence-asked\":{\"user_count\":2}}}", done(backend.get("/channels", params)));
        var users = done(backend.get("/channels/presence-asked/users"));
        assertTrue(users.contains("{\"id\":\"1\"}") && users.contains("{\"id\":\"2\"}"), users);
        assertEquals(Result.Status.CLIENT_ERROR, backend.get("/channels/plain/users").getStatus());
    }

    @Test
    void wrongSecret() throws Exception {
        try (var foreign = new com.pusher.rest.Pusher(Server.ID, Server.KEY, "wrong")) {
            foreign.setHost(server.address());
            foreign.setEncrypted(false);
            var result = foreign.trigger("c", "e", "");
            assertEquals(Result.Status.AUTHENTICATION_ERROR, result.getStatus(), result.getMessage());
        }
    }
}
