#!/usr/bin/env bash
# Guess: each subscription to a presence channel brings its whole roster, so that after a reconnect `getUsers()` of
# pusher-java-client, and what it gives to `onUsersInformationReceived`, is who is there now.
# Found: 2.4.4 adds the new roster to the old one. Who left while the connection was away stays in both, and
# `userUnsubscribed` is never called for them. Only a channel that was unsubscribed and subscribed anew starts empty.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat >pom.xml <<'XML'
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId>
  <artifactId>roster</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>com.pusher</groupId>
      <artifactId>pusher-java-client</artifactId>
      <version>2.4.4</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-nop</artifactId>
      <version>2.0.13</version>
    </dependency>
  </dependencies>
</project>
XML
mvn --quiet --batch-mode -Dstyle.color=never -Dmaven.repo.local=repository \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DoutputDirectory=jars >/dev/null
cat >Roster.java <<'JAVA'
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.pusher.client.Pusher;
import com.pusher.client.PusherOptions;
import com.pusher.client.channel.PresenceChannel;
import com.pusher.client.channel.PresenceChannelEventListener;
import com.pusher.client.channel.PusherEvent;
import com.pusher.client.channel.User;
import java.net.InetSocketAddress;
import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.java_websocket.WebSocket;
import org.java_websocket.handshake.ClientHandshake;
import org.java_websocket.server.WebSocketServer;

public class Roster {
    static final BlockingQueue<String> told = new LinkedBlockingQueue<>();
    static final BlockingQueue<Integer> listening = new LinkedBlockingQueue<>();
    static volatile List<String> present = List.of("1", "2", "3");
    static volatile WebSocket socket;

    /** As much of a Pusher server as this needs: it greets, and tells each subscriber who is present. */
    static class Server extends WebSocketServer {
        Server() {
            super(new InetSocketAddress("127.0.0.1", 0));
        }

        static void send(WebSocket to, String event, JsonObject data, String channel) {
            JsonObject frame = new JsonObject();
            frame.addProperty("event", event);
            frame.addProperty("data", data.toString());
            if (channel != null) frame.addProperty("channel", channel);
            to.send(frame.toString());
        }

        @Override public void onOpen(WebSocket opened, ClientHandshake head) {
            socket = opened;
            JsonObject hello = new JsonObject();
            hello.addProperty("socket_id", "1.1");
            hello.addProperty("activity_timeout", 120);
            send(opened, "pusher:connection_established", hello, null);
        }

        @Override public void onMessage(WebSocket from, String text) {
            JsonObject frame = JsonParser.parseString(text).getAsJsonObject();
            if (!frame.get("event").getAsString().equals("pusher:subscribe")) return;
            String ids = present.stream().map(id -> '"' + id + '"').collect(Collectors.joining(","));
            String hash = present.stream().map(id -> '"' + id + "\":{}").collect(Collectors.joining(","));
            String roster = "{\"presence\":{\"count\":" + present.size() + ",\"ids\":[" + ids + "],\"hash\":{" + hash + "}}}";
            String channel = frame.getAsJsonObject("data").get("channel").getAsString();
            send(from, "pusher_internal:subscription_succeeded", JsonParser.parseString(roster).getAsJsonObject(), channel);
        }

        @Override public void onStart() {
            listening.add(getPort());
        }

        @Override public void onClose(WebSocket closed, int code, String reason, boolean remote) {}

        @Override public void onError(WebSocket at, Exception error) {}
    }

    static class Listener implements PresenceChannelEventListener {
        @Override public void onUsersInformationReceived(String channel, Set<User> users) {
            told.add("here " + ids(users));
        }

        @Override public void userSubscribed(String channel, User user) {
            told.add("came " + user.getId());
        }

        @Override public void userUnsubscribed(String channel, User user) {
            told.add("went " + user.getId());
        }

        @Override public void onAuthenticationFailure(String message, Exception error) {}

        @Override public void onSubscriptionSucceeded(String channel) {}

        @Override public void onEvent(PusherEvent event) {}
    }

    static String ids(Set<User> users) {
        return users.stream().map(User::getId).sorted().collect(Collectors.joining(" "));
    }

    static boolean changed;

    /** Prints what the listener was told next, and who is in the channel by `getUsers()`. */
    static void look(String when, PresenceChannel channel, String expected) throws InterruptedException {
        String first = told.poll(20, TimeUnit.SECONDS);
        String found = first + "; getUsers() " + ids(channel.getUsers());
        System.out.println(when + ": told: " + found);
        if (!found.equals(expected) || told.poll(500, TimeUnit.MILLISECONDS) != null) {
            System.out.println("    this has changed: it was " + expected + ", and nothing more");
            changed = true;
        }
    }

    public static void main(String[] arguments) throws Exception {
        new Server().start();
        int port = listening.take();
        PusherOptions options = new PusherOptions().setHost("127.0.0.1").setWsPort(port).setUseTLS(false);
        options.setChannelAuthorizer((channel, id) -> "{\"auth\":\"key:signature\",\"channel_data\":\"{\\\"user_id\\\":\\\"1\\\"}\"}");
        Pusher pusher = new Pusher("key", options);
        pusher.connect();
        PresenceChannel channel = pusher.subscribePresence("presence-room", new Listener());
        look("1, 2 and 3 are there", channel, "here 1 2 3; getUsers() 1 2 3");
        present = List.of("1", "4");
        socket.closeConnection(1006, "");
        look("cut, and come back while 1 and 4 are there", channel, "here 1 2 3 4; getUsers() 1 2 3 4");
        pusher.unsubscribe("presence-room");
        PresenceChannel anew = pusher.subscribePresence("presence-room", new Listener());
        look("left and entered again", anew, "here 1 4; getUsers() 1 4");
        System.exit(changed ? 1 : 0);
    }
}
JAVA
echo "java $(java -XshowSettings:properties -version 2>&1 | sed -n 's/ *java.version = //p'), $(cd jars && echo pusher-java-client-*.jar)"
java -cp 'jars/*' Roster.java
