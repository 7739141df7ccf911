#!/usr/bin/env bash
# Guess: OkHttp's WebSocket answers the server's close frame by itself, as RFC 6455 asks and as the JDK's does, and tells
# the listener `onClosed`; at the latest the end of the TCP connection is told, by `onFailure`.
# Found: 4.12.0 and 5.1.0 tell `onClosing` and do nothing else. No close frame goes back, and once the server has ended the
# connection nothing is told at all; `send` still returns true. Who reconnects in `onClosed` and `onFailure` never does,
# unless `onClosing` calls `close`, or there is a `pingInterval`, whose first ping without a pong is a failure.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
# Fetches a jar and what it depends on into a folder.
fetch() {
    mkdir "$1"
    cat >"$1/pom.xml" <<XML
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId>
  <artifactId>close</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>com.squareup.okhttp3</groupId>
      <artifactId>$2</artifactId>
      <version>$3</version>
    </dependency>
  </dependencies>
</project>
XML
    mvn --quiet --batch-mode -Dstyle.color=never -Dmaven.repo.local=repository --file "$1/pom.xml" \
        org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DoutputDirectory=. >/dev/null
}
fetch okhttp4 okhttp 4.12.0
fetch okhttp5 okhttp-jvm 5.1.0
cat >Close.java <<'JAVA'
import java.io.DataInputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.net.URI;
import java.net.http.HttpClient;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.Base64;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.WebSocket;
import okhttp3.WebSocketListener;

public class Close {
    static final BlockingQueue<String> told = new LinkedBlockingQueue<>();
    static boolean changed;

    /** Takes one client, sends it a close frame with 4200, and says whether one came back within 2 s. Then ends the connection. */
    static String serve(ServerSocket server) throws Exception {
        try (Socket socket = server.accept()) {
            DataInputStream in = new DataInputStream(socket.getInputStream());
            OutputStream out = socket.getOutputStream();
            String key = "";
            for (String line = in.readLine(); !line.isEmpty(); line = in.readLine())
                if (line.toLowerCase().startsWith("sec-websocket-key:")) key = line.substring(18).trim();
            byte[] accept = MessageDigest.getInstance("SHA-1")
                .digest((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").getBytes(StandardCharsets.US_ASCII));
            out.write(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
                + Base64.getEncoder().encodeToString(accept) + "\r\n\r\n").getBytes(StandardCharsets.US_ASCII));
            out.write(new byte[] {(byte) 0x88, 2, (byte) (4200 >> 8), (byte) (4200 & 255)});
            out.flush();
            socket.setSoTimeout(2000);
            try {
                return (in.read() & 15) == 8 ? "a close frame comes back" : "something else comes back";
            } catch (SocketTimeoutException nothing) {
                return "nothing comes back";
            }
        }
    }

    /** All that is told until 3 s have passed without more. */
    static String heard() throws InterruptedException {
        StringBuilder all = new StringBuilder();
        for (String next; (next = told.poll(3, TimeUnit.SECONDS)) != null;) all.append(all.isEmpty() ? "" : ", ").append(next);
        return all.toString();
    }

    static WebSocketListener listener(boolean closes) {
        return new WebSocketListener() {
            @Override public void onClosing(WebSocket socket, int code, String reason) {
                told.add("onClosing " + code);
                if (closes) socket.close(code, reason);
            }

            @Override public void onClosed(WebSocket socket, int code, String reason) {
                told.add("onClosed " + code);
            }

            @Override public void onFailure(WebSocket socket, Throwable error, Response response) {
                told.add("onFailure");
            }
        };
    }

    static void look(String name, String found, String expected) {
        System.out.println(name + ": " + found);
        if (!found.equals(expected)) {
            System.out.println("    this has changed: it was " + expected);
            changed = true;
        }
    }

    static String okhttp(boolean closes, int pingSeconds) throws Exception {
        OkHttpClient client = new OkHttpClient.Builder().pingInterval(Duration.ofSeconds(pingSeconds)).build();
        try (ServerSocket server = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            String address = "http://127.0.0.1:" + server.getLocalPort() + "/";
            WebSocket socket = client.newWebSocket(new Request.Builder().url(address).build(), listener(closes));
            String answer = serve(server);
            return answer + "; told: " + heard() + "; send() " + socket.send("text");
        }
    }

    static String jdk() throws Exception {
        try (ServerSocket server = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            URI address = URI.create("ws://127.0.0.1:" + server.getLocalPort() + "/");
            HttpClient.newHttpClient().newWebSocketBuilder().buildAsync(address, new java.net.http.WebSocket.Listener() {
                @Override public CompletionStage<?> onClose(java.net.http.WebSocket socket, int code, String reason) {
                    told.add("onClose " + code);
                    return null;
                }
            });
            return serve(server) + "; told: " + heard();
        }
    }

    public static void main(String[] arguments) throws Exception {
        String name = arguments[0];
        look("the JDK", jdk(), "a close frame comes back; told: onClose 4200");
        look(name, okhttp(false, 0), "nothing comes back; told: onClosing 4200; send() true");
        look(name + ", onClosing calls close", okhttp(true, 0),
            "a close frame comes back; told: onClosing 4200, onClosed 4200; send() false");
        look(name + ", pings each second", okhttp(false, 1),
            "something else comes back; told: onClosing 4200, onFailure; send() false");
        System.exit(changed ? 1 : 0);
    }
}
JAVA
echo "java $(java -XshowSettings:properties -version 2>&1 | sed -n 's/ *java.version = //p')"
java -cp 'okhttp4/*' Close.java 'OkHttp 4.12.0'
java -cp 'okhttp5/*' Close.java 'OkHttp 5.1.0'
