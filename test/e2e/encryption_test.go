//go:build e2e && virtual

package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/nettest"
	"github.com/netdriver/netdriver/test/e2e/lab"
)

// encrypted is a cluster of one namespace node, which has the store and no ESP, and virtual nodes, each with a container
// in an encrypted network and in one in clear.
type encrypted struct {
	*cluster
	t      *testing.T
	daemon lab.DaemonConfig
	nodes  []*lab.Node // those with containers
	// tasks are the containers by node, addrs their addresses in the encrypted network.
	tasks map[*lab.Node]string
	addrs map[*lab.Node]string
}

const secretNet, clearNet = "secret", "clear"

// debugging is how the nodes' daemons are started.
func debugging(args ...string) lab.DaemonConfig {
	return lab.DaemonConfig{Args: append([]string{"--log-level", "debug"}, args...)}
}

// found starts netdriver on nodes and makes a cluster of them, in which certificates vouch for the nodes' keys.
func found(t *testing.T, nodes []*lab.Node, daemon lab.DaemonConfig) error {
	t.Helper()
	for _, n := range nodes {
		if err := n.StartDaemon(t.Context(), daemon); err != nil {
			return err
		}
	}
	if _, err := nodes[0].Exec(t.Context(), "netdriver", "cluster", "init", "--members", "1"); err != nil {
		return err
	}
	members(t, nodes[0], 1)
	token, err := nodes[0].Exec(t.Context(), "netdriver", "cluster", "token")
	if err != nil {
		return err
	}
	for _, n := range nodes[1:] {
		if _, err := n.Exec(t.Context(), "netdriver", "cluster", "join", strings.TrimSpace(token)); err != nil {
			return err
		}
	}
	return nil
}

// newEncrypted makes one with so many virtual nodes; options are of its encrypted network.
func newEncrypted(t *testing.T, virtual int, ipv6 bool, daemon lab.DaemonConfig, options ...string) *encrypted {
	t.Helper()
	begin := time.Now()
	config := lab.Config{Nodes: 1 + virtual, Kernels: map[int]lab.Kernel{}, IPv6: ipv6, Binary: binary(t)}
	for i := range virtual {
		config.Kernels[2+i] = lab.Kernel{}
	}
	l := ownLab(t, config)
	e := &encrypted{
		cluster: &cluster{Lab: l}, t: t, daemon: daemon, nodes: l.Nodes[1:], tasks: map[*lab.Node]string{}, addrs: map[*lab.Node]string{},
	}
	if err := found(t, l.Nodes, daemon); err != nil {
		t.Fatal(err)
	}
	if err := l.StartDocker(t.Context(), dockerArgs()...); err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	for i, n := range e.nodes {
		e.addrs[n] = fmt.Sprintf("10.150.1.%d", 11+i)
		e.tasks[n] = "task"
		group.Go(func() error { return e.start(n, e.addrs[n], options) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("cluster, networks and containers in %s", time.Since(begin))
	return e
}

// start makes both networks on a node and the task in them.
func (e *encrypted) start(n *lab.Node, addr string, options []string) error {
	ctx := e.t.Context()
	// The first one loads the kernel's modules for all ciphers, which is slow here.
	secret := createArgs(secretNet, append([]string{"--subnet", "10.150.1.0/24", "--opt", "encrypted"}, options...)...)
	for end := time.Now().Add(n.Patience(30 * time.Second)); ; time.Sleep(2 * time.Second) {
		_, err := n.Docker(ctx, secret...)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			return err
		}
	}
	for _, command := range [][]string{
		createArgs(clearNet, "--subnet", "10.150.2.0/24"),
		{"create", "--name", "task", "--network", secretNet, "--ip", addr, lab.Image, "sleep", "10000"},
		{"network", "connect", clearNet, "task"},
		{"start", "task"},
	} {
		if _, err := n.Docker(ctx, command...); err != nil {
			return err
		}
	}
	return nil
}

// within tries until do succeeds; the limit is that of namespace nodes.
func (e *encrypted) within(limit time.Duration, do func() error) {
	e.t.Helper()
	eventually(e.t, e.nodes[0].Patience(limit), do)
}

// A wire is a capture of all that crosses the switch between the nodes.
type wire struct {
	t    *testing.T
	file string
	cmd  *exec.Cmd
	on   *lab.Node
}

func (e *encrypted) capture(name string) *wire {
	e.t.Helper()
	w := &wire{t: e.t, file: filepath.Join(e.Dir, name+".pcap"), on: e.Outside}
	w.cmd = e.Outside.Command(e.t.Context(), "tcpdump", "-i", "br0", "-n", "-U", "-s", "96", "-w", w.file, "udp or "+inESP)
	if err := w.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	eventually(e.t, 20*time.Second, func() error { return e.Outside.Command(e.t.Context(), "test", "-s", w.file).Run() })
	return w
}

// stop ends the capture and returns how many packets each filter finds in it.
func (w *wire) stop(filters ...string) (counts []int) {
	w.t.Helper()
	time.Sleep(300 * time.Millisecond) // for what is on its way
	_ = w.cmd.Process.Signal(unix.SIGTERM)
	_ = w.cmd.Wait() // by the signal
	for _, f := range filters {
		out := run(w.t, w.on, "sh", "-c", `tcpdump -n -r "$0" "$1" 2>/dev/null | wc -l`, w.file, f)
		n, err := strconv.Atoi(out)
		if err != nil {
			w.t.Fatal(err)
		}
		counts = append(counts, n)
	}
	return counts
}

const (
	inESP     = "(ip proto 50 or ip6 proto 50)"
	inUDP     = "udp port 4500" // ESP, where the daemons are told so
	inClear   = "udp port 4790"
	plainPort = "udp port 4789"
	fragments = "(ip and ip[6:2] & 0x3fff != 0) or (ip6 and ip6[6] = 44)"
)

// pingAll waits until each task reaches each other one.
func (e *encrypted) pingAll() {
	e.t.Helper()
	for _, from := range e.nodes {
		for _, to := range e.nodes {
			if from != to {
				e.within(30*time.Second, func() error { return ping(e.t, from, e.tasks[from], e.addrs[to]) })
			}
		}
	}
}

// report is what a node's inspect says of the encrypted network.
func (e *encrypted) report(n *lab.Node) (r diag.NetworkReport, err error) {
	out, err := n.Exec(e.t.Context(), "sh", "-c", "netdriver inspect -o json "+secretNet+"; [ $? -lt 3 ]")
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	if err == nil && r.Encryption == nil {
		err = fmt.Errorf("%s: the network is not shown as encrypted", n.Name)
	}
	return r, err
}

func TestVirtualEncryptedNetwork(t *testing.T) {
	e := newEncrypted(t, 3, false, debugging(), "--opt", "rekey=20s")
	e.parts([]part{
		{"ping and proof", e.pings}, {"bulk", e.bulk}, {"refused", e.refusal}, {"forged", e.forged}, {"flushed", e.flushed},
		{"killed", e.killed}, {"removed", e.removed},
	})
}

// Two hundred new keys, one a second on each of two nodes, under a flood of pings and a stream of TCP.
func TestVirtualEncryptedNetworkIsRekeyedEachSecond(t *testing.T) {
	e := newEncrypted(t, 2, false, debugging(), "--opt", "rekey=1s")
	e.pingAll()
	e.rekeyed(t, 200)
}

// An underlay of IPv6, and ESP over UDP as through a firewall that lets nothing else pass.
func TestVirtualEncryptedNetworkOverIPv6InUDP(t *testing.T) {
	e := newEncrypted(t, 2, true, debugging("--esp-in-udp", "4500"), "--opt", "rekey=20s")
	e.parts([]part{{"pings", e.pingsInUDP}, {"bulk", e.bulk}})
}

// A part of a test of one cluster; run is told the sub-test.
type part struct {
	name string
	run  func(*testing.T)
}

func (e *encrypted) parts(parts []part) {
	outer := e.t
	for _, p := range parts {
		outer.Run(p.name, func(t *testing.T) {
			defer func() { e.t = outer }()
			e.t = t
			begin := time.Now()
			p.run(t)
			t.Logf("took %s", time.Since(begin))
		})
	}
}

// pings looks at the wire while all tasks ping each other: ESP alone, and as a control the plain network in clear. The
// product's own proof says the same.
func (e *encrypted) pings(t *testing.T) {
	e.pingAll()
	w := e.capture("ping")
	for _, from := range e.nodes {
		for _, to := range e.nodes {
			if from != to {
				docker(t, from, "exec", e.tasks[from], "ping", "-c", "5", "-i", "0.2", "-W", "5", e.addrs[to])
			}
		}
	}
	if c := w.stop(inESP, inClear); c[0] < 2*5*6 || c[1] != 0 {
		t.Errorf("%d packets of ESP, %d in clear", c[0], c[1])
	}
	plain := e.clearAddress(e.nodes[1])
	w = e.capture("plain")
	docker(t, e.nodes[0], "exec", e.tasks[e.nodes[0]], "ping", "-c", "5", "-i", "0.2", "-W", "5", plain)
	if c := w.stop(inESP, plainPort); c[1] < 10 {
		t.Errorf("the plain network shows %d packets in clear: the capture sees nothing", c[1])
	}
	for _, n := range e.nodes {
		says(t, run(t, n, "netdriver", "prove", secretNet), "HEALTHY", "40 of 40 left as ESP, 0 in clear")
	}
	out, err := e.nodes[0].Exec(t.Context(), "sh", "-c", "netdriver prove "+clearNet+"; echo status $?")
	if err != nil {
		t.Fatal(err)
	}
	says(t, out, "FAILED", "0 of 40 left as ESP, 40 in clear", "status 2")
	e.within(20*time.Second, e.counted) // a new key begins at 0
}

// counted says whether inspect shows both pairs of the first node with what has just gone through them.
func (e *encrypted) counted() error {
	n := e.nodes[0]
	for _, to := range e.nodes[1:] {
		if err := ping(e.t, n, e.tasks[n], e.addrs[to]); err != nil {
			return err
		}
	}
	r, err := e.report(n)
	if err != nil {
		return err
	}
	if len(r.Encryption.Pairs) != 2 || r.MTU.Derived != "1416 = 1500 underlay − 50 VXLAN − 34 ESP" {
		return fmt.Errorf("MTU %q, %+v", r.MTU.Derived, r.Encryption)
	}
	for _, p := range r.Encryption.Pairs {
		if p.Blocked != "" || p.Cipher == "" || len(p.SAs) < 2 || p.SAs[0].Packets == 0 || p.SAs[0].Bytes == 0 {
			return fmt.Errorf("%+v", p)
		}
	}
	return nil
}

// clearAddress is a task's address in the plain network.
func (e *encrypted) clearAddress(n *lab.Node) string {
	return docker(e.t, n, "inspect", "--format", "{{.NetworkSettings.Networks."+clearNet+".IPAddress}}", e.tasks[n])
}

// pingsInUDP: what leaves is ESP-in-UDP, and both inspect and the proof know it.
func (e *encrypted) pingsInUDP(t *testing.T) {
	e.pingAll()
	a, b := e.nodes[0], e.nodes[1]
	w := e.capture("ping")
	docker(t, a, "exec", e.tasks[a], "ping", "-c", "10", "-i", "0.2", "-W", "5", e.addrs[b])
	if c := w.stop(inUDP, inESP, inClear); c[0] < 20 || c[1]+c[2] != 0 {
		t.Errorf("%d packets of ESP-in-UDP, %d of ESP, %d in clear", c[0], c[1], c[2])
	}
	says(t, run(t, a, "netdriver", "prove", secretNet), "HEALTHY", "20 of 20 left as ESP, 0 in clear")
	r, err := e.report(a)
	if err != nil {
		t.Fatal(err)
	}
	if want := "1388 = 1500 underlay − 70 VXLAN − 42 ESP"; r.MTU.Derived != want || !slices.Equal(r.Encryption.Encap, []uint16{4500}) {
		t.Errorf("MTU %q, want %q; ports %v of ESP-in-UDP, want 4500", r.MTU.Derived, want, r.Encryption.Encap)
	}
}

// bulk sends 3 MB each way between two tasks: segments beyond the MTU, cut up by the kernel. The listener's input stays open:
// its end would close the connection.
func (e *encrypted) bulk(t *testing.T) {
	a, b := e.nodes[0], e.nodes[1]
	w := e.capture("bulk")
	for _, way := range [][2]*lab.Node{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		docker(t, to, "exec", "--detach", e.tasks[to], "sh", "-c", "sleep 600 | nc -l -p 9000 | wc -c >/tmp/got")
		begin := time.Now()
		e.within(60*time.Second, func() error {
			_, err := from.Docker(t.Context(), "exec", e.tasks[from], "sh", "-c", "head -c 3000000 /dev/zero | timeout 120 nc "+e.addrs[to]+" 9000")
			return err
		})
		e.within(30*time.Second, func() error {
			got, err := to.Docker(t.Context(), "exec", e.tasks[to], "cat", "/tmp/got")
			if err == nil && strings.TrimSpace(got) != "3000000" {
				err = fmt.Errorf("%q of 3000000 bytes arrived on %s", got, to.Name)
			}
			return err
		})
		t.Logf("3 MB from %s to %s in %s", from.Name, to.Name, time.Since(begin))
	}
	if c := w.stop(inESP+" or "+inUDP, inClear, fragments); c[0] < 3000 || c[1] != 0 || c[2] != 0 {
		t.Errorf("%d packets of ESP, %d in clear, %d fragments", c[0], c[1], c[2])
	}
}

// refusal: a node whose kernel has no ESP takes no part in the network, says why, and leaves nothing.
func (e *encrypted) refusal(t *testing.T) {
	n := e.Nodes[0]
	if _, err := n.Exec(t.Context(), "sh", "-c", "modprobe esp4 && modprobe esp6"); err == nil {
		t.Log("this machine's kernel has ESP: its node may take part")
		return
	}
	says(t, refused(t, n, createArgs(secretNet, "--subnet", "10.150.1.0/24")...), "secret is encrypted", "n1 cannot encrypt", "esp4")
	if out := docker(t, n, "network", "ls"); strings.Contains(out, secretNet) {
		t.Errorf("the refused network is there: %s", out)
	}
}

// flushed: what others remove comes back, and meanwhile nothing is in clear.
func (e *encrypted) flushed(t *testing.T) {
	n, to := e.nodes[0], e.nodes[1]
	for _, c := range []struct{ what, command string }{
		{"SAs", "ip xfrm state flush"}, {"policies", "ip xfrm policy flush"},
		{"filter", "nft flush ruleset; iptables-legacy -t mangle -F"}, {"policies and SAs", "ip xfrm policy flush; ip xfrm state flush"},
	} {
		w := e.capture("flush")
		stop := e.flood(n, e.addrs[to])
		time.Sleep(time.Second)
		begin := time.Now()
		run(t, n, "sh", "-c", c.command)
		e.within(20*time.Second, func() error { return ping(t, n, e.tasks[n], e.addrs[to]) })
		t.Logf("%s flushed: traffic again after %s", c.what, time.Since(begin))
		time.Sleep(2 * time.Second)
		sent, got := stop()
		if c := w.stop(inESP, inClear); c[0] < 10 || c[1] != 0 {
			t.Errorf("flushed: %d packets of ESP, %d in clear", c[0], c[1])
		}
		outage := time.Duration(sent-got) * floodEvery
		t.Logf("%s flushed: %d of %d pings lost, that is %s", c.what, sent-got, sent, outage)
		if outage > n.Patience(time.Second) {
			t.Errorf("%s flushed: healed after %s", c.what, outage)
		}
		e.pingAll()
		says(t, run(t, n, "ip", "xfrm", "policy"), "dport 4790", "action block")
	}
}

const (
	floodEvery = 100 * time.Millisecond
	late       = 20
)

// flood pings an address ten times a second until stop, which returns how many were sent and answered, without the last ones that may
// be late.
func (e *encrypted) flood(n *lab.Node, addr string) (stop func() (sent, received int)) {
	e.t.Helper()
	name := fmt.Sprintf("/tmp/flood-%d", time.Now().UnixNano())
	docker(e.t, n, "exec", "--detach", e.tasks[n], "sh", "-c", "ping -i 0.1 -W 5 "+addr+" >"+name+" 2>&1 & echo $! >"+name+".pid; wait")
	return func() (sent, received int) {
		e.t.Helper()
		docker(e.t, n, "exec", e.tasks[n], "sh", "-c", "kill -INT $(cat "+name+".pid)")
		var out string
		e.within(10*time.Second, func() (err error) {
			if out, err = n.Docker(e.t.Context(), "exec", e.tasks[n], "cat", name); err == nil {
				sent, received, err = nettest.Pings(out, late)
			}
			return err
		})
		return sent, received
	}
}

// rekeyed: keys change so many times under a flood of pings and a stream of TCP. None of it is lost, and no packet lacks a key.
func (e *encrypted) rekeyed(t *testing.T, times uint64) {
	a, b := e.nodes[0], e.nodes[1]
	first := e.keys()
	drops := map[*lab.Node]string{a: xfrmDrops(t, a), b: xfrmDrops(t, b)}
	w := e.capture("rekey")
	stop := e.flood(a, e.addrs[b])
	docker(t, b, "exec", "--detach", e.tasks[b], "sh", "-c", "sleep 10000 | nc -l -p 9001 >/tmp/got; touch /tmp/ended")
	time.Sleep(time.Second)
	docker(t, a, "exec", "--detach", e.tasks[a], "sh", "-c",
		"while [ ! -e /tmp/stop ]; do head -c 10000 /dev/urandom; sleep 0.2; done | tee /tmp/sent | nc "+e.addrs[b]+" 9001")
	begin := time.Now()
	e.within(100*time.Second, func() error {
		time.Sleep(5 * time.Second)
		if n := e.keys() - first; n < times {
			return fmt.Errorf("only %d new keys", n)
		}
		return nil
	})
	t.Logf("%d new keys in %s", e.keys()-first, time.Since(begin))
	docker(t, a, "exec", e.tasks[a], "touch", "/tmp/stop")
	sum := func(n *lab.Node, file string) string {
		out := docker(t, n, "exec", e.tasks[n], "sh", "-c", "wc -c <"+file+"; md5sum <"+file)
		return strings.Join(strings.Fields(out), " ")
	}
	e.within(20*time.Second, func() error {
		if sent, got := sum(a, "/tmp/sent"), sum(b, "/tmp/got"); sent != got {
			return fmt.Errorf("the stream brought %s of %s", got, sent)
		}
		return nil
	})
	if _, err := b.Docker(t.Context(), "exec", e.tasks[b], "test", "-e", "/tmp/ended"); err == nil {
		t.Error("the connection was reset")
	}
	sent, received := stop()
	t.Logf("%d of %d pings were answered, the stream brought %s", received, sent, sum(b, "/tmp/got"))
	if sent < 200 || received < sent {
		t.Errorf("%d of %d pings were answered", received, sent)
	}
	for n, was := range drops {
		if now := xfrmDrops(t, n); now != was {
			t.Errorf("%s lacked a key: its kernel had dropped %s before, and %s afterwards", n.Name, was, now)
		}
	}
	if c := w.stop(inESP, inClear); c[0] < 2*sent || c[1] != 0 {
		t.Errorf("%d packets of ESP, %d in clear", c[0], c[1])
	}
}

// keys is how many keys the first two nodes have made, both together.
func (e *encrypted) keys() (sum uint64) {
	e.t.Helper()
	for _, n := range e.nodes[:2] {
		r, err := e.report(n)
		if err != nil {
			e.t.Fatal(err)
		}
		sum += r.Encryption.Epoch
	}
	return sum
}

// xfrmDrops is what a node's kernel has dropped for want of a key, by a wrong one or for a policy.
func xfrmDrops(t *testing.T, n *lab.Node) string {
	t.Helper()
	return strings.Join(strings.Fields(run(t, n, "sed", "/\t0$/d", "/proc/net/xfrm_stat")), " ")
}

// killed: a daemon that is killed takes nothing along, and goes on when it is back.
func (e *encrypted) killed(t *testing.T) {
	n, other := e.nodes[1], e.nodes[0]
	w := e.capture("kill")
	stop := e.flood(other, e.addrs[n])
	if err := n.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	if err := n.StartDaemon(t.Context(), e.daemon); err != nil {
		t.Fatal(err)
	}
	time.Sleep(25 * time.Second) // a key's life
	sent, received := stop()
	t.Logf("%d of %d pings were answered", received, sent)
	if received < sent {
		t.Errorf("%d of %d pings were answered", received, sent)
	}
	if c := w.stop(inESP, inClear); c[0] == 0 || c[1] != 0 {
		t.Errorf("%d packets of ESP, %d in clear", c[0], c[1])
	}
	e.pingAll()
	says(t, run(t, n, "netdriver", "prove", secretNet), "HEALTHY")
}

// removed: nobody shares a key with a node that was removed from the cluster. Its kernel goes on sending with the keys that it has:
// before, these packets arrive; afterwards they are dropped and counted.
func (e *encrypted) removed(t *testing.T) {
	gone, left := e.nodes[2], e.nodes[0]
	if err := gone.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	before := e.echoes(left)
	if err := ping(t, gone, e.tasks[gone], e.addrs[left]); err != nil || e.echoes(left) == before {
		t.Fatalf("before it is removed a node whose daemon has ended sends %d packets: %v", e.echoes(left)-before, err)
	}
	run(t, e.Nodes[0], "netdriver", "cluster", "remove", "--force", gone.Name)
	e.within(5*time.Second, func() error {
		for _, n := range e.nodes[:2] {
			if out, err := n.Exec(t.Context(), "ip", "xfrm", "state"); err != nil || strings.Contains(out, gone.Addr.String()) {
				return fmt.Errorf("%s still has SAs with it: %v", n.Name, err)
			}
		}
		return nil
	})
	if err := ping(t, left, e.tasks[left], e.addrs[gone]); err == nil {
		t.Error("the removed node's task is still reached")
	}
	before = e.echoes(left)
	drops, err := e.report(left)
	if err != nil {
		t.Fatal(err)
	}
	w := e.capture("removed")
	if err := ping(t, gone, e.tasks[gone], e.addrs[left]); err == nil || e.echoes(left) != before {
		t.Errorf("%d packets of the removed node arrive", e.echoes(left)-before)
	}
	if c := w.stop(fmt.Sprintf("%s and src host %s and dst host %s", inESP, gone.Addr, left.Addr)); c[0] == 0 {
		t.Error("the removed node sends nothing: there was nothing to drop")
	}
	e.within(10*time.Second, func() error {
		r, err := e.report(left)
		if was := drops.Encryption.Drops.Unknown; err == nil && r.Encryption.Drops.Unknown == was {
			err = fmt.Errorf("inspect counts %d packets of no key, as before", was)
		}
		return err
	})
	if err := ping(t, left, e.tasks[left], e.addrs[e.nodes[1]]); err != nil {
		t.Errorf("the others: %v", err)
	}
}
