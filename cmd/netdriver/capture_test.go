package main

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/diag"
)

// called runs a command line and returns its exit status and what it said.
func called(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = app{out: &o, err: &e}.execute(t.Context(), args)
	return code, o.String(), e.String()
}

func TestAMistakeInACaptureIsToldWithWhatIsAllowed(t *testing.T) {
	lan := healthy()
	lan.Network, lan.Mode = "lan", "macvlan"
	dir := startReports(t, reports{"my-net": healthy(), "lan": lan})
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "requires at least 1 arg"},
		{[]string{"no-net"}, "no-net"},
		{[]string{"my-net", "--time", "2h"}, "at most 1h"},
		{[]string{"my-net", "--time", "-1s"}, "--time -1s"},
		{[]string{"my-net", "--size", "much"}, `--size "much": want a number of bytes`},
		{[]string{"my-net", "--count", "-1"}, "--count -1"},
		{[]string{"my-net", "-s", "3"}, "--snaplen 3: want 14 to 262144"},
		{[]string{"my-net", "-o", "xml"}, "want text or json"},
		{[]string{"my-net", "-o", "json", "-w", "f"}, "exclude each other"},
		{[]string{"my-net", "--node", "node9"}, "--node node9: it does not have network my-net"},
		{[]string{"my-net", "stranger"}, `"stranger" is no endpoint of network my-net`},
		{[]string{"my-net", "tcp port nine"}, `port "nine"`},
		{[]string{"my-net", "not", "vlan"}, `"vlan" is not understood`},
		{[]string{"lan"}, "network lan is of mode macvlan"},
	} {
		code, out, errs := called(t, append([]string{"capture", "--run-dir", dir}, c.args...)...)
		if code != exitUnknown || !strings.Contains(errs, c.want) || out != "" {
			t.Errorf("%v: status %d, %q, want 3 and %q", c.args, code, errs, c.want)
		}
	}
}

func TestTheWordsAfterTheNetworkAreAnEndpointAFilterOrBoth(t *testing.T) {
	r := swarmed() // the tasks web.1 and web.2 are on node1 and node2
	r.Endpoints[2].Container = "tcp"
	all := []string{"node1", "node2", "node3"}
	for words, want := range map[string]struct {
		endpoints []int
		nodes     []string
		filter    string
	}{
		"":                                   {nil, all, ""},
		"tcp port 80":                        {nil, all, "tcp port 80"},
		"( udp )":                            {nil, all, "( udp )"},
		"not host 10.10.0.3":                 {nil, all, "not host 10.10.0.3"},
		"web":                                {[]int{0, 1}, all[:2], ""},
		r.Endpoints[1].Task + " tcp":         {[]int{1}, all[1:2], "tcp"},
		r.Endpoints[2].ID[:6] + " (udp)":     {[]int{2}, all[2:], "(udp)"},
		r.Endpoints[0].Addresses[0].String(): {[]int{0}, all[:1], ""},
	} {
		j, err := newCaptureJob(r, captureOptions{snap: 100, time: time.Minute}, strings.Fields(words))
		if err != nil {
			t.Errorf("%q: %v", words, err)
			continue
		}
		var endpoints, nodes []string
		for _, i := range want.endpoints {
			endpoints = append(endpoints, r.Endpoints[i].ID)
		}
		for _, n := range j.nodes {
			nodes = append(nodes, n.Node)
		}
		if !slices.Equal(j.question.Endpoints, endpoints) || !slices.Equal(nodes, want.nodes) || j.scene.Filter != want.filter {
			t.Errorf("%q: endpoints %v, nodes %v, filter %q, want %+v", words, j.question.Endpoints, nodes, j.scene.Filter, want)
		}
		if err := j.question.Check(); err != nil || j.question.Seconds != 65 {
			t.Errorf("%q: %d s, %v", words, j.question.Seconds, err)
		}
	}
	j, err := newCaptureJob(r, captureOptions{snap: 100, time: time.Minute, nodes: []string{"node2"}}, []string{"host", r.Endpoints[0].Task})
	if err != nil || len(j.nodes) != 1 || j.nodes[0].Node != "node2" {
		t.Errorf("--node node2: %+v, %v", j, err)
	}
}

func TestAnEndpointIsFoundByEveryNameThatPeopleUse(t *testing.T) {
	e := diag.Endpoint{
		ID: "3f2a91c04d55", Container: "front", ContainerID: "9911ffee0000", Service: "web", Task: "web.1.x81",
		Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.2"), netip.MustParseAddr("fd00::2")},
	}
	for name, found := range map[string]bool{
		"front": true, "9911": true, "web": true, "web.1.x81": true, "3f2a9": true, "10.10.0.2": true, "fd00::2": true,
		"fro": false, "3f2": false, "10.10.0.3": false, "": false,
	} {
		if got := len(matching([]diag.Endpoint{e}, name)) == 1; got != found {
			t.Errorf("%q: found %v, want %v", name, got, found)
		}
	}
}
