//go:build e2e

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// faults is the list. What a daemon repairs by itself within moments is broken while it is stopped.
func (w *world) faults() []fault {
	return slices.Concat(w.wireFaults(), w.filterFaults(), w.containerFaults(), w.stackFaults(), w.kernelFaults(), w.hostFaults())
}

// command makes an injection of a command on a node.
func command(n *lab.Node, args ...string) func(*world) {
	return func(w *world) { w.run(n, args...) }
}

// wireFaults are between the VXLAN devices.
func (w *world) wireFaults() []fault {
	n1, n2 := w.Nodes[0], w.Nodes[1]
	input := []string{"INPUT", "-p", "udp", "--dport", "4789", "-s", n1.Addr.String(), "-j", "DROP"}
	output := []string{"OUTPUT", "-p", "udp", "--dport", "4789", "-d", n2.Addr.String(), "-j", "DROP"}
	iptables := func(n *lab.Node, verb string, rule []string) func(*world) {
		return command(n, append([]string{"iptables", verb}, rule...)...)
	}
	return []fault{
		{
			name: "udp_dropped_by_the_receiver", inject: iptables(n2, "-I", input), repair: iptables(n2, "-D", input), dead: true,
			says: []string{"packet filter of n2", "4789", "remove that rule"},
		},
		{
			name: "udp_dropped_by_the_sender", inject: iptables(n1, "-I", output), repair: iptables(n1, "-D", output), dead: true,
			says: []string{"packet filter of n1", "remove that rule"},
		},
		{
			name: "check_finds_the_rule_of_the_sender", inject: iptables(n1, "-I", output), repair: iptables(n1, "-D", output), dead: true,
			verb: []string{"check"}, says: []string{"n1", "4789", "remove that rule"}, also: []string{"n2"},
		},
		{
			name: "udp_blocked_between_the_hosts_one_way", dead: true,
			inject: func(w *world) { w.onSwitch("n2", "") }, repair: func(w *world) { w.clearSwitch() },
			says: []string{"between the hosts drops UDP port 4789", "n1", "n2"},
		},
		{
			name: "check_finds_the_way_to_a_peer_blocked", dead: true,
			inject: func(w *world) { w.onSwitch("n2", "") }, repair: func(w *world) { w.clearSwitch() },
			verb: []string{"check", "--peer", "n2"}, says: []string{"between the hosts drops UDP port 4789", "n1", "n2"},
		},
		{
			name: "underlay_smaller_than_its_device_says", large: true,
			inject: func(w *world) { w.onSwitch("n2", "meta length 1400-1600") }, repair: func(w *world) { w.clearSwitch() },
			says: []string{"carries less than the 1500 bytes", "--opt mtu="},
		},
		{
			name:   "underlay_device_too_small",
			inject: command(n2, "ip", "link", "set", "eth0", "mtu", "1300"), repair: command(n2, "ip", "link", "set", "eth0", "mtu", "1500"),
			says: []string{"n2", "eth0 has MTU 1300", "packets of this network need 1500"},
		},
		{
			name:   "every_third_packet_lost",
			inject: func(w *world) { w.onSwitch("n2", "numgen inc mod 3 0") }, repair: func(w *world) { w.clearSwitch() },
			says: []string{"packets", "n1", "n2", "between the hosts"},
		},
		{
			name: "no_route_to_the_peer", dead: true,
			inject: command(n1, "ip", "route", "add", "unreachable", n2.Addr.String()),
			repair: command(n1, "ip", "route", "del", "unreachable", n2.Addr.String()),
			says:   []string{"n1", "no route to n2", "unreachable route"},
		},
		{
			name: "a_rule_sends_packets_to_the_peer_into_a_black_hole", dead: true,
			inject: command(n1, "ip", "rule", "add", "to", n2.Addr.String(), "blackhole"),
			repair: command(n1, "ip", "rule", "del", "to", n2.Addr.String(), "blackhole"),
			says:   []string{"n1", "no route to n2", "blackhole", "ip rule"},
		},
		{
			name: "wrong_neighbour_entry_of_the_host", dead: true,
			inject: command(n1, "ip", "neigh", "replace", n2.Addr.String(), "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent"),
			repair: command(n1, "ip", "neigh", "del", n2.Addr.String(), "dev", "eth0"),
			says:   []string{"n1", n2.Addr.String(), "to MAC 02:00:00:00:00:99", "ip neigh del"},
		},
		{
			name: "another_host_has_the_peers_address", dead: true,
			inject: func(w *world) {
				w.run(w.Outside, "ip", "address", "add", n2.Addr.String()+"/32", "dev", "br0")
				w.run(n1, "ip", "neigh", "replace", n2.Addr.String(), "lladdr", w.run(w.Outside, "cat", "/sys/class/net/br0/address"), "dev", "eth0")
			},
			repair: func(w *world) {
				w.run(w.Outside, "ip", "address", "del", n2.Addr.String()+"/32", "dev", "br0")
				w.run(n1, "ip", "neigh", "flush", "dev", "eth0")
			},
			says: []string{"n1", "several hosts", n2.Addr.String(), "find the second host"},
		},
		{
			name: "ARP_switched_off_on_the_underlay", dead: true,
			inject: command(n1, "ip", "link", "set", "eth0", "arp", "off"), repair: command(n1, "ip", "link", "set", "eth0", "arp", "on"),
			says: []string{"n1", "ARP is switched off on the underlay's device eth0", "arp on"},
		},
		{
			name: "rp_filter_drops_the_peers_packets", dead: true, on: n2,
			inject: func(w *world) {
				w.run(n2, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
				w.run(n2, "ip", "link", "add", "elsewhere", "type", "bridge")
				w.run(n2, "ip", "link", "set", "elsewhere", "up")
				w.run(n2, "ip", "route", "add", n1.Addr.String(), "dev", "elsewhere")
			},
			repair: func(w *world) {
				w.run(n2, "ip", "link", "del", "elsewhere")
				w.run(n2, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
			},
			says: []string{"n2", "packets to n1", "do not leave through the underlay's device eth0 but through elsewhere", "ip route get"}, verb: []string{"check"},
			also: []string{"n2"},
		},
	}
}

// filterFaults are in packet filters that count nothing, or that close other ports.
func (w *world) filterFaults() []fault {
	n1, n2, n3 := w.Nodes[0], w.Nodes[1], w.Nodes[2]
	nft := func(n *lab.Node, script string) func(*world) { return command(n, "nft", script) }
	closed := func(n *lab.Node, port string) (inject, repair func(*world)) {
		rule := []string{"INPUT", "-p", "tcp", "--dport", port, "-j", "DROP"}
		return command(n, append([]string{"iptables", "-I"}, rule...)...), command(n, append([]string{"iptables", "-D"}, rule...)...)
	}
	closePeer, openPeer := closed(n2, "4792")
	closeStore, openStore := closed(n1, "2379")
	return []fault{
		{
			name: "a_rule_that_counts_nothing", dead: true,
			inject: nft(n1, "add table inet f; add chain inet f o { type filter hook output priority 0; }; add rule inet f o udp dport 4789 drop"),
			repair: nft(n1, "delete table inet f"),
			says:   []string{"packet filter of n1", "without counting", "inet f o: udp dport 4789 drop", "remove that rule"},
		},
		{
			name: "a_chain_that_drops_by_default", dead: true,
			inject: nft(n2, "add table inet f; add chain inet f i { type filter hook input priority 0; policy drop; }; add rule inet f i meta l4proto { tcp, icmp } accept"),
			repair: nft(n2, "delete table inet f"),
			says:   []string{"packet filter of n2", "inet f i (hook input): policy drop", "accept UDP port 4789"},
		},
		{
			name: "check_finds_a_firewall_that_knows_nothing_of_the_cluster", dead: true, on: n2,
			inject: command(n2, "iptables", "-P", "INPUT", "DROP"), repair: command(n2, "iptables", "-P", "INPUT", "ACCEPT"),
			verb: []string{"check"}, says: []string{"n2", "policy drop", "no rule there accepts UDP port 4789", "accept UDP port 4789"}, also: []string{"n2"},
		},
		{
			name: "a_filter_at_the_device", dead: true,
			inject: nft(n2, "add table netdev f; add chain netdev f i { type filter hook ingress device eth0 priority 0; }; add rule netdev f i udp dport 4789 counter drop"),
			repair: nft(n2, "delete table netdev f"),
			says:   []string{"packet filter of n2", "netdev f i", "remove that rule"},
		},
		{
			name: "the_daemons_port_closed", inject: closePeer, repair: openPeer,
			says: []string{"daemon of n2 is connected to the store", "accept TCP"},
		},
		{
			name: "check_finds_the_rule_at_the_daemons_port", inject: closePeer, repair: openPeer, on: n2, verb: []string{"check"},
			says: []string{"n2", "TCP port 4792", "ask each other", "remove that rule"},
		},
		{
			name: "check_finds_the_rule_at_the_stores_port", inject: closeStore, repair: openStore, on: n1, verb: []string{"check"},
			says: []string{"n1", "TCP port 2379", "the store uses", "remove that rule"}, also: []string{"n"},
		},
		{
			name: "a_firewall_at_docker_gwbridge", on: n3, verb: []string{"check"},
			inject: command(n3, "iptables", "-I", "DOCKER-USER", "-i", "docker_gwbridge", "-j", "DROP"),
			repair: command(n3, "iptables", "-D", "DOCKER-USER", "-i", "docker_gwbridge", "-j", "DROP"),
			says:   []string{"n3", "docker_gwbridge", "DOCKER-USER", "remove that rule"},
		},
	}
}

// stackFaults are in the containers' own kernels: their interfaces could send.
func (w *world) stackFaults() []fault {
	n1, n2 := w.Nodes[0], w.Nodes[1]
	in := func(n *lab.Node, args ...string) func(*world) { return func(w *world) { w.inContainer(n, args...) } }
	return []fault{
		{
			name: "blackhole_in_the_container", dead: true,
			inject: in(n1, "ip", "route", "add", "blackhole", w.address["n2"]), repair: in(n1, "ip", "route", "del", "blackhole", w.address["n2"]),
			says: []string{"n1", "c-n1", "blackhole", "ip route"},
		},
		{
			name: "the_subnets_route_is_gone", dead: true,
			inject: in(n2, "ip", "route", "del", subnet), repair: in(n2, "ip", "route", "add", subnet, "dev", "eth0", "src", w.address["n2"]),
			says: []string{"n2", "c-n2", "lead them to eth1", "ip route get"},
		},
		{
			name: "a_rule_in_the_container_forbids", dead: true,
			inject: in(n2, "ip", "rule", "add", "to", w.address["n1"], "prohibit"), repair: in(n2, "ip", "rule", "del", "to", w.address["n1"], "prohibit"),
			says: []string{"n2", "c-n2", "prohibit", "ip rule"},
		},
		{
			name: "ARP_switched_off_in_the_container", dead: true,
			inject: in(n1, "ip", "link", "set", "eth0", "arp", "off"), repair: in(n1, "ip", "link", "set", "eth0", "arp", "on"),
			says: []string{"n1", "ARP is switched off on the interface eth0 in the container", "arp on"},
		},
		{
			name: "output_filter_in_the_container", dead: true,
			inject: in(n1, "iptables", "-I", "OUTPUT", "-p", "icmp", "-j", "DROP"), repair: in(n1, "iptables", "-D", "OUTPUT", "-p", "icmp", "-j", "DROP"),
			says: []string{"packet filter in the container on n1", "OUTPUT", "remove that rule"},
		},
		{
			name: "a_filter_in_the_container_that_drops_by_default", dead: true,
			inject: in(n2, "iptables", "-P", "INPUT", "DROP"), repair: in(n2, "iptables", "-P", "INPUT", "ACCEPT"),
			says: []string{"packet filter in the container on n2", "INPUT (hook input): policy drop"},
		},
		{
			name:   "a_route_with_a_small_MTU_in_the_container",
			inject: in(n1, "ip", "route", "add", w.address["n2"], "dev", "eth0", "mtu", "lock", "600"),
			repair: in(n1, "ip", "route", "del", w.address["n2"], "dev", "eth0"),
			says:   []string{"n1", "sends no packets of 1450 bytes", "its route allows 600", "ip route"},
		},
		{
			name: "the_interface_in_the_container_has_a_small_MTU", large: true,
			inject: in(n2, "ip", "link", "set", "eth0", "mtu", "576"), repair: in(n2, "ip", "link", "set", "eth0", "mtu", "1450"),
			says: []string{"n2", "interface eth0 in the container has MTU 576", "restart"},
		},
	}
}

// containerFaults are at the containers' ends.
func (w *world) containerFaults() []fault {
	n1, n2 := w.Nodes[0], w.Nodes[1]
	in := func(n *lab.Node, args ...string) func(*world) { return func(w *world) { w.inContainer(n, args...) } }
	return []fault{
		{
			name: "the_interface_in_the_container_is_down", dead: true,
			inject: in(n2, "ip", "link", "set", "eth0", "down"), repair: in(n2, "ip", "link", "set", "eth0", "up"),
			says: []string{"interface eth0 in the container is down", "n2"},
		},
		{
			name: "the_address_was_taken_off", dead: true,
			inject: in(n2, "ip", "address", "flush", "dev", "eth0"),
			repair: in(n2, "ip", "address", "add", w.address["n2"]+"/24", "dev", "eth0"),
			says:   []string{"does not have its address " + w.address["n2"], "n2"},
		},
		{
			name: "wrong_neighbour_in_the_container", dead: true,
			inject: in(n1, "ip", "neigh", "replace", w.address["n2"], "lladdr", "02:00:00:00:00:99", "dev", "eth0"),
			repair: in(n1, "ip", "neigh", "del", w.address["n2"], "dev", "eth0"),
			says:   []string{"believes that " + w.address["n2"] + " has MAC 02:00:00:00:00:99", "ip neigh del"},
		},
		{
			name: "filter_in_the_container", dead: true,
			inject: in(n2, "iptables", "-I", "INPUT", "-p", "icmp", "-j", "DROP"),
			repair: in(n2, "iptables", "-D", "INPUT", "-p", "icmp", "-j", "DROP"),
			says:   []string{"packet filter in the container", "n2"},
		},
		{
			name: "another_MAC_is_dropped_as_policy", dead: true,
			inject: func(w *world) { w.setMAC(n1, "02:00:00:00:00:77") },
			repair: func(w *world) { w.setMAC(n1, w.mac) },
			says:   []string{"n1", "has MAC 02:00:00:00:00:77", "guard drops"},
		},
	}
}

// setMAC gives the interface in a container another address; its routes stay.
func (w *world) setMAC(n *lab.Node, mac string) {
	w.inContainer(n, "ip", "link", "set", "eth0", "address", mac)
}

// kernelFaults are in netdriver's namespace, while its daemon is stopped.
func (w *world) kernelFaults() []fault {
	n1, n2 := w.Nodes[0], w.Nodes[1] // the first has the store
	stopped := func(n *lab.Node, args ...string) func(*world) {
		return func(w *world) {
			w.freeze(n)
			w.inside(n, args...)
		}
	}
	// What was broken is repaired by the daemon.
	thaw := func(n *lab.Node) func(*world) { return func(w *world) { w.thaw(n) } }
	return []fault{
		{
			name: "forwarding_entry_to_the_wrong_host", dead: true, repair: thaw(n2), offline: n2,
			inject: stopped(n2, "bridge", "fdb", "replace", w.mac, "dev", w.vxlan(), "dst", w.Nodes[2].Addr.String(), "self", "permanent"),
			says:   []string{"n2", "sends frames for " + w.mac + " to " + w.Nodes[2].Addr.String(), "endpoint is on n1"},
		},
		{
			name: "forwarding_entry_deleted", repair: thaw(n2), offline: n2, // frames are flooded meanwhile
			inject: stopped(n2, "bridge", "fdb", "del", w.mac, "dev", w.vxlan(), "dst", n1.Addr.String(), "self"),
			says:   []string{"n2", "no forwarding entry for " + w.mac, "n1"},
		},
		{
			name: "wrong_neighbour_on_the_bridge", repair: thaw(n2), offline: n2, // which containers ask when theirs is old
			inject: stopped(n2, "ip", "neigh", "replace", w.address["n1"], "lladdr", "02:00:00:00:00:66", "dev", w.bridge(), "nud", "permanent"),
			says:   []string{"n2", "answers that " + w.address["n1"] + " has MAC 02:00:00:00:00:66"},
		},
		{
			name: "port_down", dead: true, inject: stopped(n2, "ip", "link", "set", w.port(n2), "down"), repair: thaw(n2),
			says: []string{"n2", "port " + w.port(n2) + " is down"}, offline: n2,
		},
		{
			name: "bridge_down", dead: true, inject: stopped(n2, "ip", "link", "set", w.bridge(), "down"), repair: thaw(n2),
			says: []string{"n2", "bridge " + w.bridge() + " is down"}, offline: n2,
		},
		{
			name: "vxlan_device_off_the_bridge", dead: true, inject: stopped(n2, "ip", "link", "set", w.vxlan(), "nomaster"), repair: thaw(n2),
			says: []string{"n2", "VXLAN device " + w.vxlan() + " is not on the network's bridge"}, offline: n2,
		},
		{
			name: "vxlan_device_gone", dead: true, inject: stopped(n2, "ip", "link", "del", w.vxlan()), repair: thaw(n2),
			says: []string{"n2", "VXLAN device " + w.vxlan() + " is gone"}, offline: n2,
		},
		{
			name: "vxlan_device_with_a_small_MTU", large: true, inject: stopped(n2, "ip", "link", "set", w.vxlan(), "mtu", "1200"), repair: thaw(n2),
			says: []string{"n2", "VXLAN device " + w.vxlan() + " has MTU 1200"}, offline: n2,
		},
		{
			name: "bridged_frames_sent_through_iptables", offline: n2, repair: thaw(n2),
			inject: stopped(n2, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"),
			says:   []string{"n2", "bridge-nf-call-iptables is on"},
		},
		{
			name: "filter_in_netdrivers_namespace", dead: true,
			inject: func(w *world) {
				w.inside(n2, "nft", "add table bridge fault; add chain bridge fault forward { type filter hook forward priority 0; }; "+
					"add rule bridge fault forward ip protocol icmp counter drop")
			},
			repair: func(w *world) { w.inside(n2, "nft", "delete", "table", "bridge", "fault") },
			says:   []string{"packet filter in netdriver's namespace of n2", "bridge fault forward", "icmp"},
		},
	}
}

// hostFaults are of daemons, stores and disks.
func (w *world) hostFaults() []fault {
	n2, n3 := w.Nodes[1], w.Nodes[2]
	return []fault{
		{
			name: "peer_daemon_dead", inject: func(w *world) { w.kill(n2) }, repair: func(w *world) { w.startDaemon(n2) },
			says: []string{"daemon of n2", "netdriver run"},
		},
		{
			name: "peer_host_cut_off", dead: true,
			inject: command(n2, "ip", "link", "set", "eth0", "down"),
			repair: func(w *world) {
				w.run(n2, "ip", "link", "set", "eth0", "up")
				w.run(n2, "ip", "route", "replace", "default", "via", w.Outside.Addr.String())
			},
			says: []string{"n2", "down"},
		},
		{
			name: "own_daemon_dead", on: n3, inject: func(w *world) { w.kill(n3) }, repair: func(w *world) { w.startDaemon(n3) },
			verb: []string{"check"}, says: []string{"n3", "custom-overlay.sock", "start the daemon"}, also: []string{"sock", "n3"},
		},
		{
			name: "another_vxlan_device_with_the_VNI", on: n3,
			inject: func(w *world) {
				w.kill(n3)
				w.inside(n3, "ip", "link", "del", w.vxlan())
				w.run(n3, "ip", "link", "add", "rogue", "type", "vxlan", "id", fmt.Sprint(w.vni), "dstport", "4789", "dev", "eth0")
			},
			repair: func(w *world) {
				w.run(n3, "ip", "link", "del", "rogue")
				w.startDaemon(n3)
			},
			verb: []string{"check"}, says: []string{"another VXLAN device rogue", "ip link del rogue"}, also: []string{""},
		},
		{
			name: "the_socket_was_removed", on: n3,
			inject: command(n3, "mv", "/run/docker/plugins/custom-overlay.sock", "/run/docker/plugins/gone"),
			repair: command(n3, "mv", "/run/docker/plugins/gone", "/run/docker/plugins/custom-overlay.sock"),
			verb:   []string{"check"}, says: []string{"custom-overlay.sock is not there", "restart"},
		},
		{
			name: "disk_full", on: n3,
			inject: command(n3, "mount", "-t", "tmpfs", "-o", "size=8m", "full", n3.Dir+"/netdriver"),
			repair: command(n3, "umount", n3.Dir+"/netdriver"),
			verb:   []string{"check"}, says: []string{"MiB are free under " + n3.Dir, "make room"},
		},
		{
			name: "store_unreachable", on: n3,
			inject: command(n3, "iptables", "-I", "OUTPUT", "-p", "tcp", "--dport", "2379", "-j", "DROP"),
			repair: command(n3, "iptables", "-D", "OUTPUT", "-p", "tcp", "--dport", "2379", "-j", "DROP"),
			verb:   []string{"check"}, says: []string{"n3", "the store does not answer", "existing traffic goes on"},
		},
		{
			// The store ends with the daemon that carries it: the kernel alone tells who is there.
			name: "daemon_and_store_dead", on: w.Nodes[0], inject: func(w *world) { w.kill(w.Nodes[0]) },
			repair: func(w *world) { w.startDaemon(w.Nodes[0]) },
			verb:   []string{"trace", w.address["n1"], w.address["n2"]}, says: []string{"n1", "the store cannot be asked"},
		},
		{
			name: "nobody_has_the_address", inject: func(*world) {}, repair: func(*world) {},
			verb: []string{"trace", "c-n1", "10.77.0.200"}, says: []string{"nobody has the address 10.77.0.200", "netdriver inspect web"},
		},
		{
			name: "peer_daemon_hangs", inject: func(w *world) { w.stop(n2) }, repair: func(w *world) { w.resume(n2) },
			says: []string{"daemon of n2 hangs", "restart it"}, also: []string{"n2"},
		},
		{
			name: "own_daemon_hangs", on: n3, inject: func(w *world) { w.stop(n3) }, repair: func(w *world) { w.resume(n3) },
			verb: []string{"check"}, says: []string{"n3", "daemon of this node hangs", "restart it"},
		},
		{
			name: "certificate_about_to_end", on: n3, inject: func(w *world) { w.certify(n3, -9*time.Hour, 40*time.Minute) },
			repair: func(w *world) { w.restoreCertificate(n3) },
			verb:   []string{"check"}, says: []string{"n3", "certificate", "ends at", "renews"},
		},
		{
			name: "certificate_ended", on: n3, inject: func(w *world) { w.certify(n3, -9*time.Hour, -time.Minute) },
			repair: func(w *world) { w.restoreCertificate(n3) },
			verb:   []string{"check"}, says: []string{"n3", "certificate", "ended at", "clock"}, also: []string{"certificate"},
		},
		{
			name: "forwarding_switched_off", on: n3,
			inject: command(n3, "sysctl", "-qw", "net.ipv4.ip_forward=0"), repair: command(n3, "sysctl", "-qw", "net.ipv4.ip_forward=1"),
			verb: []string{"check"}, says: []string{"the host forwards no packets", "ip_forward=1"},
		},
	}
}

// freeze ends a node's daemon, so that nothing is repaired.
func (w *world) freeze(n *lab.Node) { w.kill(n) }

func (w *world) thaw(n *lab.Node) { w.startDaemon(n) }

// stop makes a node's daemon hang, resume lets it go on.
func (w *world) stop(n *lab.Node) {
	w.t.Helper()
	if err := unix.Kill(n.DaemonPID(), unix.SIGSTOP); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) resume(n *lab.Node) {
	w.t.Helper()
	if err := resume(n.DaemonPID()); err != nil {
		w.t.Fatal(err)
	}
}

// resume lets a process go on, and its parent: nsenter stops when its child does.
func resume(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	_, after, _ := strings.Cut(string(text), ") ")
	parent, err := strconv.Atoi(strings.Fields(after)[1])
	return errors.Join(err, unix.Kill(pid, unix.SIGCONT), unix.Kill(parent, unix.SIGCONT))
}

// certify gives a node a certificate that is valid from one time until another, as seen from now.
func (w *world) certify(n *lab.Node, from, until time.Duration) {
	w.t.Helper()
	if err := w.certificates[n.Addr].Renew(time.Now().Add(from), time.Now().Add(until)); err != nil {
		w.t.Fatal(err)
	}
}

// restoreCertificate gives it one that is good for the rest of the day.
func (w *world) restoreCertificate(n *lab.Node) { w.certify(n, -time.Hour, 23*time.Hour) }

func (w *world) kill(n *lab.Node) {
	w.t.Helper()
	if err := n.KillDaemon(); err != nil && !strings.Contains(err.Error(), unix.ESRCH.Error()) {
		w.t.Fatal(err)
	}
}

// onSwitch drops the first node's VXLAN packets to another one, those that match, on the switch between them.
func (w *world) onSwitch(to, match string) {
	w.t.Helper()
	n := map[string]int{"n1": 0, "n2": 1, "n3": 2}[to]
	w.run(w.Outside, "nft", fmt.Sprintf("add table bridge fault; add chain bridge fault forward { type filter hook forward priority 0; }; "+
		"add rule bridge fault forward ip saddr %s ip daddr %s ip protocol udp udp dport 4789 %s drop", w.Nodes[0].Addr, w.Nodes[n].Addr, match))
}

func (w *world) clearSwitch() { w.run(w.Outside, "nft", "delete", "table", "bridge", "fault") }

// containerMAC is the address of the interface in a container.
func (w *world) containerMAC(n *lab.Node) string {
	w.t.Helper()
	out, err := n.Docker(context.WithoutCancel(w.t.Context()), "inspect", "--format", "{{.NetworkSettings.Networks."+network+".MacAddress}}", "c-"+n.Name)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
