#!/usr/bin/env bash
# Guess: pusher-http-go takes a webhook whose key and signature are right; for one about a `private-encrypted-` channel it
# needs the master key at most to decrypt a client event, and `channel_occupied` has nothing to decrypt.
# Found: 5.1.1 wants the key for any event of such a channel, and with it fails to decrypt the data that is not there. So
# `channel_occupied`, `channel_vacated` and `cache_miss` of one are never valid, nor is what the same request says of others.
# Fails if that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export GOPATH=$folder/path GOFLAGS='-modcacherw -mod=mod' GOTOOLCHAIN=local
cat >go.mod <<'MOD'
module finding

go 1.21

require github.com/pusher/pusher-http-go/v5 v5.1.1
MOD
cat >main.go <<'GO'
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"

	"github.com/pusher/pusher-http-go/v5"
)

const (
	plain    = `{"name":"channel_occupied","channel":"private-room"}`
	occupied = `{"name":"channel_occupied","channel":"private-encrypted-room"}`
	vacated  = `{"name":"channel_vacated","channel":"private-encrypted-room"}`
	missed   = `{"name":"cache_miss","channel":"private-encrypted-cache-room"}`
	noKey    = "No master encryption key supplied"
	wrongKey = "Failed to decrypt event, possibly wrong key?"
)

// Validates a rightly signed webhook with these events.
func validate(client pusher.Client, events string) string {
	body := []byte(`{"time_ms":1700000000000,"events":[` + events + `]}`)
	signature := hmac.New(sha256.New, []byte(client.Secret))
	signature.Write(body)
	header := http.Header{}
	header.Set("X-Pusher-Key", client.Key)
	header.Set("X-Pusher-Signature", hex.EncodeToString(signature.Sum(nil)))
	if _, err := client.Webhook(header, body); err != nil {
		return err.Error()
	}
	return "valid"
}

func main() {
	key, changed := base64.StdEncoding.EncodeToString(make([]byte, 32)), 0
	for _, look := range []struct {
		name, key, events, expected string
	}{
		{"channel_occupied of a private channel, no master key", "", plain, "valid"},
		{"channel_occupied of a private channel, master key", key, plain, "valid"},
		{"channel_occupied of an encrypted channel, no master key", "", occupied, noKey},
		{"channel_occupied of an encrypted channel, master key", key, occupied, wrongKey},
		{"channel_vacated of an encrypted channel, master key", key, vacated, wrongKey},
		{"cache_miss of an encrypted channel, master key", key, missed, wrongKey},
		{"channel_occupied of both, no master key", "", plain + "," + occupied, noKey},
		{"channel_occupied of both, master key", key, plain + "," + occupied, wrongKey},
	} {
		client := pusher.Client{AppID: "1", Key: "key", Secret: "secret", EncryptionMasterKeyBase64: look.key}
		found := validate(client, look.events)
		fmt.Printf("%s: %s\n", look.name, found)
		if found != look.expected {
			fmt.Println("    this has changed: it was", look.expected)
			changed = 1
		}
	}
	os.Exit(changed)
}
GO
go version
go build -o validate . 2>build-log || { cat build-log; exit 1; }
go list -m github.com/pusher/pusher-http-go/v5
./validate
