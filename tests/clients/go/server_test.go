// Starts and stops the release binary for the tests of this folder, and gives them a bare WebSocket
// client: there is no client library for Go to try the server with. Every wait has a deadline.
package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/pusher/pusher-http-go/v5"
)

const (
	appID    = "3103"
	appKey   = "tests-key"
	secret   = "tests-secret"
	deadline = 30 * time.Second
)

// startServer returns the host and port of a server that ends with the test; `app` are further lines of the app's
// settings.
func startServer(t *testing.T, app ...string) string {
	t.Helper()
	for attempt := 1; ; attempt++ {
		address, taken := tryServer(t, strings.Join(app, "\n"))
		if !taken {
			return address
		}
		// Another process took the free port before the server did: try the next one.
		if attempt == 3 {
			t.Fatal("found no free port in three attempts")
		}
	}
}

func tryServer(t *testing.T, app string) (address string, taken bool) {
	t.Helper()
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := probe.Addr().(*net.TCPAddr).Port
	address = probe.Addr().String()
	probe.Close()

	folder := t.TempDir()
	settings := filepath.Join(folder, "fanfare.toml")
	text := fmt.Sprintf("[server]\nhost = \"127.0.0.1\"\nport = %d\nshutdown_grace = \"1s\"\n\n"+
		"[metrics]\nport = 0\n\n[[apps]]\nid = %q\nkey = %q\nsecret = %q\n%s\n", port, appID, appKey, secret, app)
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	binary := os.Getenv("LANES_BINARY")
	if binary == "" {
		binary, _ = filepath.Abs("../../../target/release/fanfare")
	}
	var log bytes.Buffer
	server := exec.Command(binary, "--config", settings)
	server.Dir, server.Stdout, server.Stderr = folder, &log, &log
	server.Env = []string{"PATH=" + os.Getenv("PATH"), "RUST_BACKTRACE=1"}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()

	for end := time.Now().Add(deadline); ; {
		answer, err := http.Get("http://" + address + "/up")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				break
			}
		}
		select {
		case err := <-ended:
			if strings.Contains(strings.ToLower(log.String()), "in use") {
				return "", true
			}
			t.Fatalf("the server did not start (%v):\n%s", err, log.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(end) {
			server.Process.Kill()
			t.Fatal("the server did not answer /up in time")
		}
	}
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil || strings.Contains(log.String(), "panicked") {
				t.Errorf("the server's end (%v):\n%s", err, log.String())
			}
		case <-time.After(deadline):
			server.Process.Kill()
			t.Error("the server did not end in time")
		}
	})
	return address, false
}

// backend is the SDK, set up as its README says for a server of one's own.
func backend(address string) *pusher.Client {
	return &pusher.Client{AppID: appID, Key: appKey, Secret: secret, Host: address}
}

// event is a frame of the protocol.
type event struct {
	Event   string          `json:"event"`
	Channel string          `json:"channel,omitempty"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// text is the data of every event but pusher:error: a JSON string.
func (e event) text(t *testing.T) string {
	t.Helper()
	var text string
	if err := json.Unmarshal(e.Data, &text); err != nil {
		t.Fatalf("the data of %s is no string: %s", e.Event, e.Data)
	}
	return text
}

// socket is one connection and its socket id.
type socket struct {
	*websocket.Conn
	id string
}

func connect(t *testing.T, address string) socket {
	t.Helper()
	wait, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	url := "ws://" + address + "/app/" + appKey + "?protocol=7&client=go"
	connection, _, err := websocket.DefaultDialer.DialContext(wait, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	connected := socket{Conn: connection}
	established := connected.next(t, "pusher:connection_established")
	var data struct {
		SocketID string `json:"socket_id"`
	}
	if err := json.Unmarshal([]byte(established.text(t)), &data); err != nil {
		t.Fatal(err)
	}
	connected.id = data.SocketID
	return connected
}

// next reads one frame, which must be the event named.
func (s socket) next(t *testing.T, name string) event {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(deadline))
	var heard event
	if err := s.ReadJSON(&heard); err != nil {
		t.Fatalf("waiting for %s: %v", name, err)
	}
	if heard.Event != name {
		t.Fatalf("heard %+v instead of %s", heard, name)
	}
	return heard
}

// subscribe joins a channel; `signed` is what the SDK's authorizing call returned, if the channel needs it.
func (s socket) subscribe(t *testing.T, channel string, signed []byte) event {
	t.Helper()
	data := map[string]string{}
	if signed != nil {
		if err := json.Unmarshal(signed, &data); err != nil {
			t.Fatal(err)
		}
	}
	data["channel"] = channel
	request := map[string]any{"event": "pusher:subscribe", "data": data}
	if err := s.WriteJSON(request); err != nil {
		t.Fatal(err)
	}
	return s.next(t, "pusher_internal:subscription_succeeded")
}

// signIn says who the connection's user is; `signed` is what the SDK's authenticating call returned.
func (s socket) signIn(t *testing.T, signed []byte) {
	t.Helper()
	request := map[string]any{"event": "pusher:signin", "data": json.RawMessage(signed)}
	if err := s.WriteJSON(request); err != nil {
		t.Fatal(err)
	}
	s.next(t, "pusher:signin_success")
}
