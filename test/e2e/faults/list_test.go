//go:build e2e

package faults

import "fmt"

// faults is the list.
func (w *world) faults() []fault {
	n1, n2 := w.Nodes[0], w.Nodes[1]
	rule := func(n int, args ...string) (add, del func(*world)) {
		node := w.Nodes[n-1]
		do := func(verb string) func(*world) {
			return func(w *world) { w.run(node, append([]string{"iptables", verb}, args...)...) }
		}
		return do("-I"), do("-D")
	}
	inputAdd, inputDel := rule(2, "INPUT", "-p", "udp", "--dport", "4789", "-s", n1.Addr.String(), "-j", "DROP")
	outputAdd, outputDel := rule(1, "OUTPUT", "-p", "udp", "--dport", "4789", "-d", n2.Addr.String(), "-j", "DROP")
	return []fault{
		{
			name: "udp_dropped_by_the_receiver", inject: inputAdd, repair: inputDel, dead: true,
			says: []string{"packet filter of n2", "4789", "remove that rule"},
		},
		{
			name: "udp_dropped_by_the_sender", inject: outputAdd, repair: outputDel, dead: true,
			says: []string{"packet filter of n1", "remove that rule"},
		},
		{
			name: "udp_blocked_between_the_hosts_one_way", dead: true,
			inject: func(w *world) { w.between(n2.Name, true) },
			repair: func(w *world) { w.between(n2.Name, false) },
			says:   []string{"between the hosts drops UDP port 4789", "n1", "n2"},
		},
		{
			name: "underlay_smaller_than_its_device_says", large: true,
			inject: func(w *world) { w.largeBetween(n2.Name, true) },
			repair: func(w *world) { w.largeBetween(n2.Name, false) },
			says:   []string{"carries less than the 1500 bytes", "--opt mtu="},
		},
		{
			name: "the_container's_interface_is_down", dead: true,
			inject: func(w *world) { w.inContainer(n2, "ip", "link", "set", "eth0", "down") },
			repair: func(w *world) { w.inContainer(n2, "ip", "link", "set", "eth0", "up") },
			says:   []string{"interface eth0 in the container is down", "n2"},
		},
		{
			name: "wrong_neighbour_in_the_container", dead: true,
			inject: func(w *world) {
				w.inContainer(n1, "ip", "neigh", "replace", w.address["n2"], "lladdr", "02:00:00:00:00:99", "dev", "eth0")
			},
			repair: func(w *world) { w.inContainer(n1, "ip", "neigh", "del", w.address["n2"], "dev", "eth0") },
			says:   []string{"believes that " + w.address["n2"] + " has MAC 02:00:00:00:00:99", "ip neigh del"},
		},
		{
			name: "filter_in_the_container", dead: true,
			inject: func(w *world) { w.inContainer(n2, "iptables", "-I", "INPUT", "-p", "icmp", "-j", "DROP") },
			repair: func(w *world) { w.inContainer(n2, "iptables", "-D", "INPUT", "-p", "icmp", "-j", "DROP") },
			says:   []string{"packet filter in the container", "n2"},
		},
		{
			name: "peer_daemon_dead",
			inject: func(w *world) {
				if err := n2.KillDaemon(); err != nil {
					w.t.Fatal(err)
				}
			},
			repair: func(w *world) { w.startDaemon(n2) },
			says:   []string{"daemon of n2", "netdriver run"},
		},
	}
}

// between drops the first node's VXLAN packets to another one on the switch between them.
func (w *world) between(to string, on bool) { w.onSwitch(to, on, "ip protocol udp udp dport 4789") }

// largeBetween drops packets that are nearly as large as the device allows.
func (w *world) largeBetween(to string, on bool) {
	w.onSwitch(to, on, "ip protocol udp udp dport 4789 meta length 1400-1600")
}

// onSwitch makes or removes a filter of the bridge that is the lab's switch.
func (w *world) onSwitch(to string, on bool, match string) {
	w.t.Helper()
	if !on {
		w.run(w.Outside, "nft", "delete", "table", "bridge", "fault")
		return
	}
	n := map[string]int{"n1": 0, "n2": 1, "n3": 2}[to]
	w.run(w.Outside, "nft", fmt.Sprintf("add table bridge fault; add chain bridge fault forward { type filter hook forward priority 0; }; "+
		"add rule bridge fault forward ip saddr %s ip daddr %s %s drop", w.Nodes[0].Addr, w.Nodes[n].Addr, match))
}
