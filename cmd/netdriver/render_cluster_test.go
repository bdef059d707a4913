package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/netdriver/netdriver/internal/cluster"
	"github.com/netdriver/netdriver/internal/golden"
)

func clusterReport() cluster.Report {
	addr := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, i}) }
	return cluster.Report{
		Schema: cluster.Schema, Node: "n1", Role: cluster.RoleMember, Size: 3, Losses: 1, Tokens: 1,
		Members: []cluster.MemberInfo{
			{Node: "n1", Address: addr(1), State: "leader", Size: 1_200_000},
			{Node: "n2", Address: addr(2), State: "follower", Size: 1_200_000, Behind: 2},
			{Node: "n3", Address: addr(3), State: "follower", Size: 1_100_000},
		},
		Clients:         []cluster.ClientInfo{{Node: "n4", Address: addr(4), Alive: true}, {Node: "n5", Address: addr(5)}},
		CertificateEnds: now.Add(cluster.CertificateLife), AuthorityEnds: now.AddDate(20, 0, 0),
	}
}

func TestStatusOfAClusterSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*cluster.Report)
		code   int
	}{
		"healthy": {func(*cluster.Report) {}, exitHealthy},
		"one-node": {func(r *cluster.Report) {
			r.Members, r.Clients, r.Losses, r.Size = r.Members[:1], nil, 0, 1
		}, exitHealthy},
		"member-down": {func(r *cluster.Report) {
			r.Members[2].State, r.Members[2].Size, r.Losses = "DOWN", 0, 0
		}, exitDegraded},
		"growing": {func(r *cluster.Report) {
			r.Members[2] = cluster.MemberInfo{Node: "192.0.2.3", Address: r.Members[2].Address, State: "starting"}
			r.Members[1].State, r.Losses = "learner", 0
		}, exitHealthy},
		"certificates": {func(r *cluster.Report) {
			r.CertificateEnds, r.AuthorityEnds = now.Add(29*24*time.Hour), now.Add(certificateWarning-time.Hour)
		}, exitDegraded},
	} {
		r := clusterReport()
		c.change(&r)
		golden.Compare(t, "cluster-"+name+".txt", plain().cluster(r))
		if code := clusterExit(r, now); code != c.code {
			t.Errorf("%s: exit status %d, want %d", name, code, c.code)
		}
	}
}
