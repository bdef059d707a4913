package ipam

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/ipam"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// node is one host: a service behind a real plugin server, and what its engine sends.
type node struct {
	t      testing.TB
	name   string
	mem    *store.Memory
	reach  func(store.Store) store.Store // how the daemon reaches it; nil: well
	s      *Service
	server *plugin.Server
	routes []netip.Prefix
	clock  time.Duration
	stop   func()
}

func newNode(t testing.TB, mem *store.Memory, name string) *node {
	n := &node{t: t, name: name, mem: mem}
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

// start starts a daemon that knows nothing but the store.
func (n *node) start() {
	log := slog.New(slog.DiscardHandler)
	var truth store.Store = n.mem
	if n.reach != nil {
		truth = n.reach(truth)
	}
	n.s = New(Config{
		Store: truth, Node: n.name, Log: log,
		Routes: func() ([]netip.Prefix, error) { return n.routes, nil },
		Now:    func() time.Time { return time.Now().Add(n.clock) },
	})
	n.server = plugin.New(plugin.Config{Methods: n.s.Methods(), Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.s.Run(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			n.t.Errorf("Run: %v", err)
		}
		done <- context.Canceled // for a second stop
	}
}

// restart ends the daemon and starts another.
func (n *node) restart() {
	n.stop()
	n.start()
}

// call sends one call, decodes its answer and returns its error.
func (n *node) call(method string, req, answer any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	w := httptest.NewRecorder()
	n.server.ServeHTTP(w, httptest.NewRequest("POST", "/IpamDriver."+method, bytes.NewReader(body)))
	if w.Code != 200 {
		var f plugin.Failure
		if err := json.Unmarshal(w.Body.Bytes(), &f); err != nil || f.Err == "" {
			n.t.Errorf("%s: %d without reason: %s", method, w.Code, w.Body)
		}
		return errors.New(f.Err)
	}
	return json.Unmarshal(w.Body.Bytes(), answer)
}

// pool sends a RequestPool for a subnet ("" to choose), perhaps for a named network.
func (n *node) pool(subnet, network string) (string, error) {
	req := ipam.RequestPoolRequest{AddressSpace: LocalSpace, Pool: subnet, V6: strings.Contains(subnet, ":")}
	if network != "" {
		req.Options = map[string]string{"network": network}
	}
	return n.requestPool(req)
}

// requestPool sends any RequestPool and returns the id.
func (n *node) requestPool(req ipam.RequestPoolRequest) (string, error) {
	var res ipam.RequestPoolResponse
	err := n.call("RequestPool", req, &res)
	return res.PoolID, err
}

// gateway asks for the gateway, "" for any.
func (n *node) gateway(pool, address string) (string, error) {
	return n.address(pool, address, map[string]string{"RequestAddressType": "com.docker.network.gateway"})
}

// run asks for a container's address, "" for any.
func (n *node) run(pool, address string, mac int) (string, error) {
	return n.address(pool, address, map[string]string{"com.docker.network.endpoint.macaddress": macN(mac).String()})
}

// replay asks for an address as an engine does at its start, or for --aux-address: no options.
func (n *node) replay(pool, address string) (string, error) { return n.address(pool, address, nil) }

func (n *node) address(pool, address string, options map[string]string) (string, error) {
	var res ipam.RequestAddressResponse
	err := n.call("RequestAddress", ipam.RequestAddressRequest{PoolID: pool, Address: address, Options: options}, &res)
	return res.Address, err
}

// release releases an address, with or without prefix length.
func (n *node) release(pool, address string) {
	n.t.Helper()
	a, _, _ := strings.Cut(address, "/")
	if err := n.call("ReleaseAddress", ipam.ReleaseAddressRequest{PoolID: pool, Address: a}, &struct{}{}); err != nil {
		n.t.Errorf("release %s: %v", address, err)
	}
}

func (n *node) releasePool(pool string) {
	n.t.Helper()
	if err := n.call("ReleasePool", ipam.ReleasePoolRequest{PoolID: pool}, &struct{}{}); err != nil {
		n.t.Errorf("release pool %s: %v", pool, err)
	}
}

// must fails the test on an error.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// wantError fails the test unless err has all the words.
func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q lacks %q", err, w)
		}
	}
}

// createNetwork does what the driver's CreateNetwork does with the records: the node becomes a member, its claims end.
func (n *node) createNetwork(network string, pools ...string) {
	n.t.Helper()
	ctx := context.Background()
	nw, _, err := get[store.Network](ctx, n.mem, store.NetworkKey(network))
	if errors.Is(err, store.ErrNotFound) {
		nw, err = store.Network{Name: network, Mode: store.ModeOverlay, VNI: 1 << 20, Port: 4789, MTU: 1450}, nil
	}
	nw.Members = append(nw.Members, store.Member{Node: n.name, DockerID: network + "-" + n.name})
	var ops []store.Op
	for _, id := range pools {
		subnet := must[PoolID](n.t)(ParsePoolID(id)).Subnet
		p, kv, bad := get[store.Pool](ctx, n.mem, store.PoolKey(subnet))
		err = errors.Join(err, bad)
		p.Network, p.Claims = network, slices.DeleteFunc(p.Claims, n.s.mine(LocalSpace))
		if !slices.Contains(nw.Subnets, subnet) {
			nw.Subnets = append(nw.Subnets, subnet)
		}
		ops = append(ops, store.Put(kv.Key, store.Encode(p)))
	}
	_, bad := n.mem.Commit(ctx, nil, append(ops, store.Put(store.NetworkKey(network), store.Encode(nw)))...)
	if err := errors.Join(err, bad); err != nil {
		n.t.Fatal(err)
	}
}

// web makes the node a member of network web and returns its pool.
func (n *node) web(subnet string) string {
	n.t.Helper()
	id := must[string](n.t)(n.pool(subnet, "web"))
	must[string](n.t)(n.gateway(id, ""))
	n.createNetwork("web", id)
	return id
}

// attach does what the driver's CreateEndpoint ("" for DeleteEndpoint) does with the lease.
func (n *node) attach(pool, address, endpoint string) {
	n.t.Helper()
	id := must[PoolID](n.t)(ParsePoolID(pool))
	key := store.LeaseKey(id.Subnet, must[netip.Addr](n.t)(parseAddr(address)))
	l, kv, err := get[store.Lease](context.Background(), n.mem, key)
	l.Endpoint = endpoint
	_, bad := n.mem.Commit(context.Background(), []store.Cond{store.Unchanged(kv)}, store.Put(key, store.Encode(l)))
	if err := errors.Join(err, bad); err != nil {
		n.t.Fatal(err)
	}
}

// poolOf returns the record of a pool.
func (n *node) poolOf(id string) store.Pool {
	n.t.Helper()
	p, _, err := get[store.Pool](context.Background(), n.mem, store.PoolKey(must[PoolID](n.t)(ParsePoolID(id)).Subnet))
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// records returns all leases, in order of key.
func records(t testing.TB, mem *store.Memory) (out []store.Lease) {
	t.Helper()
	kvs, _, err := mem.List(context.Background(), store.LeasePrefix)
	for _, kv := range kvs {
		l, bad := store.Decode[store.Lease](kv)
		out, err = append(out, l), errors.Join(err, bad)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// leases returns "ADDRESS KIND NODE" of all leases, in order of key.
func leases(t testing.TB, mem *store.Memory) []string {
	t.Helper()
	out := []string{}
	for _, l := range records(t, mem) {
		out = append(out, l.Address.String()+" "+l.Kind+" "+l.Node)
	}
	return out
}

// caughtUp waits until a node's view of a pool knows all the store has: its watch runs a moment behind.
func (n *node) caughtUp(pool string) {
	n.t.Helper()
	subnet := must[PoolID](n.t)(ParsePoolID(pool)).Subnet
	v := n.s.follow(subnet)
	want := ""
	if kv, err := n.mem.Get(context.Background(), store.CursorKey(subnet)); err == nil {
		want = string(kv.Value)
	}
	count, err := n.mem.Count(context.Background(), store.PoolLeases(subnet))
	if err != nil {
		n.t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		v.mu.Lock()
		ok := int64(v.used.count) == count && (want == "" || v.cursor.String() == want)
		v.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			n.t.Fatalf("%s has not caught up with pool %s", n.name, subnet)
		}
	}
}

func macN(n int) vxlan.MAC { return vxlan.MAC{0x02, 0x42, 0, 0, byte(n >> 8), byte(n)} }
