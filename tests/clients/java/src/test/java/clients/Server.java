package clients;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;

/** Starts and stops the release binary. Nothing here knows a client, and every wait has a deadline. */
final class Server implements AutoCloseable {
    static final String ID = "3104";
    static final String KEY = "tests-key";
    static final String SECRET = "tests-secret";
    static final Duration DEADLINE = Duration.ofSeconds(30);
    private static final String HOST = "127.0.0.1";
    private static final HttpClient HTTP = HttpClient.newHttpClient();

    final int port;
    private final Path log;
    private final Process process;

    private Server(String app) throws Exception {
        try (var probe = new ServerSocket(0, 1, InetAddress.getByName(HOST))) {
            port = probe.getLocalPort();
        }
        var folder = Files.createTempDirectory("fanfare-java-");
        var settings = Files.writeString(folder.resolve("fanfare.toml"), """
            [server]
            host = "%s"
            port = %d
            shutdown_grace = "1s"

            [metrics]
            port = 0

            [[apps]]
            id = "%s"
            key = "%s"
            secret = "%s"
            %s
            """.formatted(HOST, port, ID, KEY, SECRET, app));
        log = folder.resolve("log");
        for (var file : new Path[] {folder, settings, log}) file.toFile().deleteOnExit();
        var named = System.getenv("LANES_BINARY");
        var binary = named != null ? named : Path.of("../../../target/release/fanfare").toAbsolutePath().toString();
        var builder = new ProcessBuilder(binary, "--config", settings.toString());
        builder.directory(folder.toFile()).redirectErrorStream(true).redirectOutput(log.toFile());
        builder.environment().keySet().retainAll(java.util.Set.of("PATH"));
        process = builder.start();
        Runtime.getRuntime().addShutdownHook(new Thread(process::destroyForcibly));
    }

    /** A running server; a port that was taken in the meantime is given up for another one. */
    static Server start() throws Exception {
        return start("");
    }

    /** The same; `app` are further lines of the app's settings. */
    static Server start(String app) throws Exception {
        for (int attempt = 1; ; attempt++) {
            var server = new Server(app);
            until("/up answers", () -> !server.process.isAlive() || server.up());
            if (server.process.isAlive()) return server;
            var said = Files.readString(server.log);
            if (attempt == 3 || !said.toLowerCase().contains("in use")) {
                throw new AssertionError("the server did not start:\n" + said);
            }
        }
    }

    String address() {
        return HOST + ":" + port;
    }

    private boolean up() throws InterruptedException {
        var request = HttpRequest.newBuilder(URI.create("http://" + address() + "/up")).build();
        try {
            return HTTP.send(request, BodyHandlers.discarding()).statusCode() == 200;
        } catch (IOException refused) {
            return false;
        }
    }

    /** Asks the server to leave, as an init system does, and holds it to a clean end. */
    @Override
    public void close() throws Exception {
        process.destroy();
        if (!process.waitFor(DEADLINE.toSeconds(), TimeUnit.SECONDS)) process.destroyForcibly().waitFor();
        var said = Files.readString(log);
        if (process.exitValue() != 0 || said.contains("panicked")) {
            throw new AssertionError("the server ended with " + process.exitValue() + ":\n" + said);
        }
    }

    static void until(String what, Callable<Boolean> fact) throws Exception {
        var end = System.nanoTime() + DEADLINE.toNanos();
        while (!fact.call()) {
            if (System.nanoTime() > end) throw new AssertionError("waited in vain: " + what);
            TimeUnit.MILLISECONDS.sleep(10);
        }
    }
}
