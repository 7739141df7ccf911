// pusher-http-go as the backend of an app: triggering, batches, questions, users.
package clients

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/pusher/pusher-http-go/v5"
)

// join subscribes to a presence channel as `user`, signed by the SDK.
func join(t *testing.T, sdk *pusher.Client, to socket, channel, user string) {
	t.Helper()
	form := fmt.Sprintf("socket_id=%s&channel_name=%s", to.id, channel)
	member := pusher.MemberData{UserID: user, UserInfo: map[string]string{"name": "Grüße"}}
	signed, err := sdk.AuthorizePresenceChannel([]byte(form), member)
	if err != nil {
		t.Fatal(err)
	}
	to.subscribe(t, channel, signed)
}

func must[T any](t *testing.T) func(T, error) T {
	return func(answer T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
}

func equal(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTrigger(t *testing.T) {
	address := startServer(t)
	sdk, one := backend(address), connect(t, address)
	one.subscribe(t, "news", nil)
	if err := sdk.Trigger("news", "e", map[string]string{"text": "Grüße 🚀"}); err != nil {
		t.Fatal(err)
	}
	equal(t, one.next(t, "e").text(t), `{"text":"Grüße 🚀"}`)

	form := fmt.Sprintf("socket_id=%s&channel_name=private-news", one.id)
	one.subscribe(t, "private-news", must[[]byte](t)(sdk.AuthorizePrivateChannel([]byte(form))))
	if err := sdk.TriggerMulti([]string{"private-news", "elsewhere"}, "e", "text"); err != nil {
		t.Fatal(err)
	}
	equal(t, one.next(t, "e").text(t), "text")
}

func TestTriggerSparesASocket(t *testing.T) {
	address := startServer(t)
	sdk, sender, other := backend(address), connect(t, address), connect(t, address)
	sender.subscribe(t, "others", nil)
	other.subscribe(t, "others", nil)
	params := pusher.TriggerParams{SocketID: &sender.id}
	must[*pusher.TriggerChannelsList](t)(sdk.TriggerWithParams("others", "e", "", params))
	other.next(t, "e")
	if err := sdk.Trigger("others", "fence", ""); err != nil {
		t.Fatal(err)
	}
	sender.next(t, "fence")
}

func TestBatch(t *testing.T) {
	address := startServer(t)
	sdk, one := backend(address), connect(t, address)
	one.subscribe(t, "batch", nil)
	plain := []pusher.Event{{Channel: "batch", Name: "e1", Data: "1"}, {Channel: "batch", Name: "e2", Data: "2"}}
	must[*pusher.TriggerBatchChannelsList](t)(sdk.TriggerBatch(plain))
	equal(t, one.next(t, "e1").text(t), "1")
	equal(t, one.next(t, "e2").text(t), "2")

	info, count := "subscription_count", 1
	asking := []pusher.Event{{Channel: "nobody", Name: "e"}, {Channel: "batch", Name: "e", Info: &info}}
	answer := must[*pusher.TriggerBatchChannelsList](t)(sdk.TriggerBatch(asking))
	equal(t, answer.Batch, []pusher.TriggerBatchChannelListItem{{}, {SubscriptionCount: &count}})
}

func TestQuestions(t *testing.T) {
	address := startServer(t)
	sdk := backend(address)
	for _, user := range []string{"1", "1", "2"} {
		join(t, sdk, connect(t, address), "presence-room", user)
	}
	prefix, info := "presence-", "user_count"
	list := must[*pusher.ChannelsList](t)(sdk.Channels(pusher.ChannelsParams{FilterByPrefix: &prefix, Info: &info}))
	equal(t, list.Channels, map[string]pusher.ChannelListItem{"presence-room": {UserCount: 2}})

	info = "user_count,subscription_count"
	room := must[*pusher.Channel](t)(sdk.Channel("presence-room", pusher.ChannelParams{Info: &info}))
	equal(t, *room, pusher.Channel{Name: "presence-room", Occupied: true, UserCount: 2, SubscriptionCount: 3})
	nobody := must[*pusher.Channel](t)(sdk.Channel("nobody", pusher.ChannelParams{}))
	equal(t, nobody.Occupied, false)

	users := must[*pusher.Users](t)(sdk.GetChannelUsers("presence-room"))
	ids := map[string]bool{}
	for _, user := range users.List {
		ids[user.ID] = true
	}
	equal(t, ids, map[string]bool{"1": true, "2": true})
	equal(t, len(users.List), 2)
}

func TestUsers(t *testing.T) {
	address := startServer(t)
	sdk, one := backend(address), connect(t, address)
	form := []byte("socket_id=" + one.id)
	signed := must[[]byte](t)(sdk.AuthenticateUser(form, map[string]any{"id": "7"}))
	one.signIn(t, signed)
	one.subscribe(t, "#server-to-user-7", nil)
	if err := sdk.SendToUser("7", "notice", "text"); err != nil {
		t.Fatal(err)
	}
	equal(t, one.next(t, "notice").text(t), "text")
}

func TestWrongSecret(t *testing.T) {
	sdk := backend(startServer(t))
	sdk.Secret = "wrong"
	if err := sdk.Trigger("news", "e", ""); err == nil {
		t.Error("a trigger signed with a wrong secret was taken")
	}
}
