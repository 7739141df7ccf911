package clients;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.pusher.rest.data.Result;
import java.net.URI;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.java_websocket.client.WebSocketClient;
import org.java_websocket.drafts.Draft_6455;
import org.java_websocket.extensions.permessage_deflate.PerMessageDeflateExtension;
import org.java_websocket.handshake.ServerHandshake;
import org.junit.jupiter.api.Test;

/** permessage-deflate as Java-WebSocket negotiates it, which pusher-java-client has a copy of. */
class CompressionTest {
    private static final class Client extends WebSocketClient {
        final BlockingQueue<String> texts = new LinkedBlockingQueue<>();
        volatile String agreed;

        Client(URI address) {
            super(address, new Draft_6455(new PerMessageDeflateExtension()));
        }

        @Override
        public void onOpen(ServerHandshake handshake) {
            agreed = handshake.getFieldValue("Sec-WebSocket-Extensions");
        }

        @Override
        public void onMessage(String text) {
            texts.add(text);
        }

        @Override
        public void onClose(int code, String reason, boolean remote) {
            texts.add("closed " + code + " " + reason);
        }

        @Override
        public void onError(Exception error) {
            texts.add("error " + error);
        }

        String next(String part) throws InterruptedException {
            var text = texts.poll(Server.DEADLINE.toSeconds(), TimeUnit.SECONDS);
            assertNotNull(text, "waited in vain for " + part);
            assertTrue(text.contains(part), text);
            return text;
        }
    }

    @Test
    void compressedEventsAreHeard() throws Exception {
        try (var server = Server.start("compression = true")) {
            var backend = new com.pusher.rest.Pusher(Server.ID, Server.KEY, Server.SECRET);
            backend.setHost(server.address());
            backend.setEncrypted(false);
            var client = new Client(URI.create("ws://" + server.address() + "/app/" + Server.KEY + "?protocol=7"));
            client.connect();
            client.next("pusher:connection_established");
            assertTrue(client.agreed.startsWith("permessage-deflate"), client.agreed);
            // Long enough to be compressed on its way in.
            var padding = "x".repeat(2000);
            client.send("{\"event\":\"pusher:subscribe\",\"data\":{\"channel\":\"shapes\",\"p\":\"" + padding + "\"}}");
            client.next("pusher_internal:subscription_succeeded");
            for (int size : List.of(10, 600, 1500, 13_000, 66_000)) {
                var text = "Gr\u00fc\u00dfe 1, 2, 3 ".repeat(size / 14 + 1);
                var result = backend.trigger("shapes", "e", Map.of("text", text));
                assertEquals(Result.Status.SUCCESS, result.getStatus(), result.getMessage());
                client.next(text);
            }
            client.closeBlocking();
            backend.close();
        }
    }
}
