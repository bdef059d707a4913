package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/ipam"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// host is one Docker host: a daemon (driver and IPAM behind a real plugin socket) on a fake kernel, and what its Docker
// believes. The daemon can be killed and started again; kernel and store stay.
type host struct {
	t      *testing.T
	name   string
	vtep   netip.Addr
	mem    *store.Memory
	kernel *dataplane.Fake
	life   *mortal
	engine *engine
	guards *guards
	filter *firewall.Fake
	lan    *lan.Fake
	clock  atomic.Int64 // nanoseconds that this host is ahead

	driver *Driver
	leases *ipam.Service
	client *http.Client
	stop   func()

	// again is set when Docker repeats a call whose daemon died, as moby does for up to 15 s (pkg/plugins/client.go).
	again  bool
	deaths int
}

// newHost starts a host on a cluster's store.
func newHost(t *testing.T, mem *store.Memory, name, vtep string) *host {
	t.Helper()
	h := &host{t: t, name: name, vtep: netip.MustParseAddr(vtep), mem: mem, kernel: dataplane.NewFake(), engine: &engine{}, guards: &guards{}, filter: firewall.NewFake(), lan: lan.NewFake()}
	h.start()
	t.Cleanup(func() { h.stop() })
	return h
}

// start starts a daemon that knows nothing but the store and the kernel.
func (h *host) start() {
	h.t.Helper()
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	h.life = &mortal{at: -1}
	s, k := &mortalStore{h.mem, h.life}, &mortalKernel{h.kernel, h.life}
	mirror, plane := store.NewMirror(s, log), dataplane.NewPlane(k, log)
	now := func() time.Time { return time.Now().Add(time.Duration(h.clock.Load())) }
	hostPlane := lan.NewPlane(h.lan, log)
	h.leases = ipam.New(ipam.Config{
		Store: s, Node: h.name, Routes: func() ([]netip.Prefix, error) { return nil, nil }, Log: log, Now: now,
		Vet: func(ctx context.Context, subnet netip.Prefix, a netip.Addr) error {
			return h.driver.Vet(ctx, subnet, a)
		},
	})
	h.driver = New(Config{
		LAN: hostPlane, Allow: firewall.New(firewall.NewFake(), log),
		Store: s, Mirror: mirror, Plane: plane, Underlay: "eth0", Docker: h.engine, Leases: h.leases, Log: log, Now: now,
		Node:       store.Node{Name: h.name, ID: "id-" + h.name, VTEP: h.vtep, UnderlayMTU: 1500},
		Encryption: h.guards, Filter: firewall.New(h.filter, log),
	})
	path := filepath.Join(h.t.TempDir(), "custom-overlay.sock")
	srv := plugin.New(plugin.Config{Methods: append(h.driver.SwarmMethods(), h.leases.Methods()...), Log: log})
	parts := []func(context.Context) error{
		mirror.Run, plane.Run, hostPlane.Run, h.leases.Run, h.driver.Run, func(ctx context.Context) error { return srv.Serve(ctx, path) },
	}
	done := make(chan struct{}, len(parts))
	for _, run := range parts {
		go func() {
			if err := run(ctx); err != nil && ctx.Err() == nil && !h.life.dead() {
				h.t.Errorf("%s: %v", h.name, err)
			}
			done <- struct{}{}
		}()
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	h.client = &http.Client{Transport: &http.Transport{DialContext: dial}}
	h.stop = func() {
		cancel()
		for range parts {
			<-done
		}
		h.client.CloseIdleConnections()
	}
	h.eventually("daemon answers", func() error {
		if _, err := call[map[string]any](h, "Plugin.Activate", nil); err != nil {
			return err
		}
		return mirror.WaitSynced(ctx, "")
	})
}

// restart kills the daemon, wherever it is, and starts another.
func (h *host) restart() {
	h.t.Helper()
	h.life.kill()
	h.deaths++
	h.stop()
	h.start()
}

// eventually fails the test unless f succeeds within a few seconds.
func (h *host) eventually(what string, f func() error) {
	h.t.Helper()
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	h.t.Fatalf("%s: %s: %v", h.name, what, err)
}

// call sends one call as moby does (pkg/plugins/client.go).
func call[Resp any](h *host, method string, req any) (Resp, error) {
	out, err := post[Resp](h, method, req)
	if err != nil && h.again && h.life.dead() {
		h.restart()
		return post[Resp](h, method, req)
	}
	return out, err
}

// post sends a call once.
func post[Resp any](h *host, method string, req any) (Resp, error) {
	var out Resp
	body, err := json.Marshal(req)
	if err != nil {
		return out, err
	}
	res, err := h.client.Post("http://plugin/"+method, plugin.ContentType, bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return out, err
	}
	if res.StatusCode != http.StatusOK {
		var e struct{ Err string }
		if err := json.Unmarshal(b, &e); err != nil || e.Err == "" {
			return out, fmt.Errorf("%s: %d without reason: %s", method, res.StatusCode, b)
		}
		return out, fmt.Errorf("%s: %s", method, e.Err)
	}
	return out, json.Unmarshal(b, &out)
}

// do is call for an answer that nobody reads.
func (h *host) do(method string, req any) error {
	_, err := call[map[string]any](h, method, req)
	return err
}

// dockerNetwork is a Docker network as its engine remembers it.
type dockerNetwork struct {
	id, poolID, pool, gateway string
	req                       *network.CreateNetworkRequest
}

// createNetwork does what `docker network create` does, with Docker's own roll-back when a call fails.
func (h *host) createNetwork(id, subnet string, pairs ...string) (dockerNetwork, error) {
	n := dockerNetwork{id: id}
	req := request(id, subnet, pairs...)
	options := map[string]string{}
	if name, ok := req.Options[labelGeneric].(map[string]any)["network"]; ok {
		options["network"] = name.(string)
	}
	pool, err := call[struct{ PoolID, Pool string }](h, "IpamDriver.RequestPool",
		map[string]any{"AddressSpace": ipam.LocalSpace, "Pool": subnet, "Options": options})
	if err != nil {
		return n, err
	}
	n.poolID, n.pool = pool.PoolID, pool.Pool
	gw, err := call[struct{ Address string }](h, "IpamDriver.RequestAddress", map[string]any{
		"PoolID": n.poolID, "Options": map[string]string{"RequestAddressType": "com.docker.network.gateway"},
	})
	if err != nil {
		return n, errors.Join(err, h.releasePool(n))
	}
	n.gateway = gw.Address
	req.IPv4Data[0].Pool, req.IPv4Data[0].Gateway = n.pool, n.gateway
	n.req = req
	if err := h.do("NetworkDriver.CreateNetwork", req); err != nil {
		return n, errors.Join(err, h.releaseAddress(n, n.gateway), h.releasePool(n))
	}
	h.engine.add(id)
	return n, nil
}

// removeNetwork does what `docker network rm` does: its errors are ignored by Docker.
func (h *host) removeNetwork(n dockerNetwork) error {
	h.engine.remove(n.id)
	return errors.Join(h.releaseAddress(n, n.gateway), h.releasePool(n),
		h.do("NetworkDriver.DeleteNetwork", map[string]string{"NetworkID": n.id}))
}

func (h *host) releasePool(n dockerNetwork) error {
	return h.do("IpamDriver.ReleasePool", map[string]string{"PoolID": n.poolID})
}

func (h *host) releaseAddress(n dockerNetwork, address string) error {
	a, _, _ := strings.Cut(address, "/")
	return h.do("IpamDriver.ReleaseAddress", map[string]string{"PoolID": n.poolID, "Address": a})
}

// container is a container's endpoint as its engine remembers it.
type container struct{ id, address, mac string }

// run does what `docker run` does with the network, with Docker's own roll-back.
func (h *host) run(n dockerNetwork, c container) (container, error) {
	address, _, _ := strings.Cut(c.address, "/")
	got, err := call[struct{ Address string }](h, "IpamDriver.RequestAddress", map[string]any{
		"PoolID": n.poolID, "Address": address, "Options": map[string]string{"com.docker.network.endpoint.macaddress": c.mac},
	})
	if err != nil {
		return c, err
	}
	c.address = got.Address
	if err := h.createEndpoint(n, c); err != nil {
		return c, errors.Join(err, h.releaseAddress(n, c.address))
	}
	if err := h.join(n, c); err != nil {
		return c, errors.Join(err, h.deleteEndpoint(n, c), h.releaseAddress(n, c.address))
	}
	h.engine.add(n.id, c.id)
	return c, nil
}

func (h *host) createEndpoint(n dockerNetwork, c container) error {
	return h.do("NetworkDriver.CreateEndpoint", map[string]any{
		"NetworkID": n.id, "EndpointID": c.id, "Interface": map[string]string{"Address": c.address, "MacAddress": c.mac},
		"Options": map[string]any{"com.docker.network.portmap": nil},
	})
}

func (h *host) join(n dockerNetwork, c container) error {
	_, err := call[network.JoinResponse](h, "NetworkDriver.Join",
		map[string]any{"NetworkID": n.id, "EndpointID": c.id, "SandboxKey": "/var/run/docker/netns/x"})
	return err
}

func (h *host) deleteEndpoint(n dockerNetwork, c container) error {
	return h.do("NetworkDriver.DeleteEndpoint", map[string]string{"NetworkID": n.id, "EndpointID": c.id})
}

// remove does what `docker rm -f` does.
func (h *host) remove(n dockerNetwork, c container) error {
	h.engine.remove(n.id, c.id)
	return errors.Join(h.do("NetworkDriver.Leave", map[string]string{"NetworkID": n.id, "EndpointID": c.id}),
		h.deleteEndpoint(n, c), h.releaseAddress(n, c.address))
}

// networks returns what this host's kernel holds.
func (h *host) networks() []dataplane.Network {
	h.t.Helper()
	ns, err := h.kernel.Read(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return ns
}

// macN is the nth MAC of a test.
func macN(n int) string { return vxlan.MAC{0x02, 0x42, 0, 0, byte(n >> 8), byte(n)}.String() }
