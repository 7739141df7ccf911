// permessage-deflate as gorilla/websocket negotiates it: without context takeover, in both directions.
package clients

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func TestCompressedEventsAreHeard(t *testing.T) {
	address := startServer(t, "compression = true")
	wait, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	dialer := websocket.Dialer{EnableCompression: true}
	url := "ws://" + address + "/app/" + appKey + "?protocol=7&client=go"
	connection, response, err := dialer.DialContext(wait, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	agreed := response.Header.Get("Sec-WebSocket-Extensions")
	if !strings.HasPrefix(agreed, "permessage-deflate") {
		t.Fatalf("agreed on %q", agreed)
	}
	// What it sends is compressed from here on.
	connection.EnableWriteCompression(true)
	client := socket{Conn: connection}
	client.next(t, "pusher:connection_established")
	client.subscribe(t, "shapes", nil)
	for _, size := range []int{10, 600, 1500, 13_000, 66_000} {
		text := strings.Repeat(`{"id":1,"name":"Grüße"},`, size/24+1)
		data := map[string]string{"text": text, "at": fmt.Sprint(time.Now())}
		sdk := backend(address)
		// Its own limit is that of hosted Pusher.
		sdk.OverrideMaxMessagePayloadKB = 100
		if err := sdk.Trigger("shapes", "e", data); err != nil {
			t.Fatal(err)
		}
		var heard map[string]string
		if err := json.Unmarshal([]byte(client.next(t, "e").text(t)), &heard); err != nil {
			t.Fatal(err)
		}
		if heard["text"] != text || heard["at"] != data["at"] {
			t.Fatalf("heard %d bytes instead of %d", len(heard["text"]), len(text))
		}
	}
}
