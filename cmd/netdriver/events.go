package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/events"
	"github.com/netdriver/netdriver/store"
)

const eventsLong = `Show what happened on this node, oldest first: who sent with an address that is not its own, who tried to reach whom against the
rules of a network, what somebody changed and netdriver repaired, and which calls of Docker's were refused, with the reason. Some of
many are shown; inspect counts all. It works when the daemon does not run, too.`

// eventsSchema names the version of an event's JSON.
const eventsSchema = "netdriver.events/v1"

// eventsVerb shows what the ring on disk holds.
func (a app) eventsVerb() *cobra.Command {
	cmd := &cobra.Command{Use: "events", Short: "Show who was refused what on this node, and what was repaired", Long: eventsLong, Args: cobra.NoArgs}
	follow := cmd.Flags().BoolP("follow", "f", false, "go on with new ones as they come")
	network := cmd.Flags().String("network", "", "only those of one network")
	output := cmd.Flags().StringP("output", "o", "text", "text or json (one object a line)")
	config.AddFlags(cmd.Flags(), "run-dir")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *output != "text" && *output != "json" {
			return fmt.Errorf("bad --output %s: want text or json", *output)
		}
		cfg, err := config.Load(cmd.Flags(), a.environ, "run-dir")
		if err != nil {
			return err
		}
		last, err := lastSettings(cfg.RunDir)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no daemon has run with %s since the host has booted: start netdriver, or name its --run-dir", cfg.RunDir)
		}
		if err != nil {
			return fmt.Errorf("what the last daemon ran with: %w", err)
		}
		show := func(e events.Event) error { return a.showEvent(e, *network, *output == "json") }
		if *follow {
			return events.Follow(cmd.Context(), events.Dir(last.DataDir), show)
		}
		return events.Read(events.Dir(last.DataDir), show)
	}
	return cmd
}

func (a app) showEvent(e events.Event, network string, asJSON bool) error {
	if network != "" && e.Network != network {
		return nil
	}
	if asJSON {
		return json.NewEncoder(a.out).Encode(struct {
			Schema string `json:"schema"`
			events.Event
		}{eventsSchema, e})
	}
	times := ""
	if e.Count > 1 {
		times = fmt.Sprintf("  (%d times)", e.Count)
	}
	where := cmp.Or(e.Container, e.Endpoint[:min(len(e.Endpoint), 12)], none)
	if e.Peer != "" {
		where += " from " + e.Peer[:min(len(e.Peer), 64)]
	}
	_, err := fmt.Fprintf(a.out, "%s  %-8s  %s  %s  %s%s\n", e.Time.Local().Format(time.DateTime), e.Kind, cmp.Or(e.Network, none), where, e.Text, times)
	return err
}

// chronicle writes what happens into the ring.
type chronicle struct {
	ring *events.Ring
	log  *slog.Logger
	// unheard is why the packet filter tells nobody of what it drops.
	unheard *atomic.Pointer[string]
}

func newChronicle(dataDir string, log *slog.Logger) chronicle {
	c := chronicle{events.New(events.Dir(dataDir), time.Now), log, &atomic.Pointer[string]{}}
	c.unheard.Store(new(string))
	return c
}

func (c chronicle) add(e events.Event) {
	if err := c.ring.Add(e); err != nil {
		c.log.Warn("cannot keep an event", "error", err)
	}
}

// repaired tells of a repair.
func (c chronicle) repaired(network string, did []string, failed error) {
	text := strings.Join(did, "; ")
	if failed != nil {
		text += ": " + failed.Error()
	}
	c.add(events.Event{Kind: events.Repaired, Network: network, Text: text})
}

// called tells of a call of Docker's that is answered with an error.
func (c chronicle) called(method string, err error) {
	if err != nil {
		c.add(events.Event{Kind: events.Refused, Text: method + ": " + err.Error()})
	}
}

// refusals writes what the packet filter drops into the ring.
func refusals(plane *dataplane.Plane, mirror *store.Mirror, client store.Store, me store.Node, ring chronicle, log *slog.Logger) part {
	w := witness{mirror, client, me.Name}
	return part{"refusals", func(ctx context.Context) error {
		err := plane.Refusals(ctx, func(port string, r guard.Refusal) { ring.add(w.event(ctx, port, r)) })
		if err != nil { // nothing else depends on it
			log.Warn("nobody will be told who was refused what; it is still counted", "error", err)
			why := err.Error()
			ring.unheard.Store(&why)
			ring.add(events.Event{Kind: events.Notice, Text: "what is dropped is counted and not told: " + why})
		}
		<-ctx.Done()
		return nil
	}}
}

// witness finds out who is behind a port or an address.
type witness struct {
	mirror *store.Mirror
	client store.Store
	node   string
}

func (w witness) event(ctx context.Context, port string, r guard.Refusal) events.Event {
	e := events.Event{Kind: r.Kind, Text: r.String()}
	peer := ""
	w.mirror.Read(func(records *store.Records) {
		for network, endpoints := range records.Endpoints {
			for id, p := range endpoints {
				if p.Node == w.node && dataplane.PortName(id) == port {
					e.Network, e.Endpoint = network, id
				}
			}
		}
		if sender, known := store.ByAddress(records.Endpoints[e.Network])[r.From]; known && r.Kind == events.Denied {
			peer = sender.ID
		}
	})
	if e.Endpoint != "" {
		e.Container = w.name(ctx, e.Network, e.Endpoint)
	}
	if peer != "" {
		e.Peer = cmp.Or(w.name(ctx, e.Network, peer), peer)
	}
	return e
}

// name returns the name of an endpoint's container, if it is known soon.
func (w witness) name(ctx context.Context, network, endpoint string) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	kv, err := w.client.Get(ctx, store.NameKey(network, endpoint))
	if err != nil {
		return ""
	}
	n, err := store.Decode[store.Name](kv)
	if err != nil {
		return ""
	}
	return n.Container
}
