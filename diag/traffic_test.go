package diag

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/store"
)

// What a port of the bridge receives was sent by the container at its other end.
func TestTrafficIsTheContainersAndOnlyThisNodes(t *testing.T) {
	c := newCluster(t)
	mine, other := endpointRecord(2, 1), endpointRecord(3, 2)
	links := []host.Link{
		{Name: dataplane.VXLANName(4097), Sent: 1, SentBytes: 10, Received: 2, ReceivedBytes: 20},
		{Name: dataplane.PortName(mine.ID), Sent: 3, SentBytes: 30, Received: 4, ReceivedBytes: 40},
		{Name: dataplane.PortName(other.ID), Sent: 5},
		{Name: "eth0", Sent: 6},
	}
	var got []NetworkTraffic
	c.mirror.Read(func(r *store.Records) { got = traffic(r, "node1", links) })
	want := []NetworkTraffic{{
		Network: "my-net", Peers: Flow{Sent: 1, SentBytes: 10, Received: 2, ReceivedBytes: 20},
		Endpoints: []EndpointTraffic{{mine.ID, Flow{Sent: 4, SentBytes: 40, Received: 3, ReceivedBytes: 30}}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("traffic (-want +got):\n%s", diff)
	}
	c.mirror.Read(func(r *store.Records) { got = traffic(r, "node9", links) })
	if len(got) != 0 {
		t.Errorf("a node that has no network has the traffic %+v", got)
	}
}

// oneNode answers for node2.
type oneNode struct{ Peers }

func (oneNode) Traffic(_ context.Context, n store.Node) (Traffic, error) {
	return Traffic{Node: n.Name}, nil
}

func TestAnotherNodeIsAskedForItsTraffic(t *testing.T) {
	c := newCluster(t)
	if _, err := c.d.Traffic(t.Context(), "node2"); !errors.Is(err, errNoPeers) {
		t.Errorf("error %v where nobody can be asked", err)
	}
	c.d.src.Peers = oneNode{}
	if got, err := c.d.Traffic(t.Context(), "node2"); err != nil || got.Node != "node2" {
		t.Errorf("traffic %+v, error %v", got, err)
	}
	if _, err := c.d.Traffic(t.Context(), "node9"); !errors.Is(err, ErrNoNode) {
		t.Errorf("error %v about a node that is not there", err)
	}
}

func TestWithoutANamespaceThereIsNoTrafficAndItIsSaid(t *testing.T) {
	c := newCluster(t)
	c.d.src.Site.RunDir = t.TempDir()
	if _, err := c.d.Traffic(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "netdriver run") {
		t.Errorf("error %v, want the remedy", err)
	}
}
