// Package moby drives netdriver's plugin with Docker's own libnetwork, the very client code of a current engine: the
// older engine of the end-to-end tests does not show what a new one asks for.
package moby

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/libnetwork"
	"github.com/docker/docker/libnetwork/config"
	"github.com/docker/docker/libnetwork/ipamutils"
	"github.com/docker/docker/libnetwork/netlabel"
	"github.com/docker/docker/libnetwork/options"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

const driverName = "custom-overlay"

// inNode is the environment variable that tells this program that it runs inside the node.
const inNode = "NETDRIVER_MOBY_IN_NODE"

// TestMain makes a node with netdriver on it and runs this same program inside it. libnetwork looks for plugins below
// /run/docker/plugins and moves devices of its own network namespace: neither may be this machine's.
func TestMain(m *testing.M) {
	if os.Getenv(inNode) != "" {
		os.Exit(m.Run())
	}
	code, err := runInNode(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = 1
	}
	os.Exit(code)
}

func runInNode(ctx context.Context) (code int, err error) {
	binary, err := filepath.Abs("../../bin/netdriver")
	if err != nil {
		return 0, err
	}
	l, err := lab.New(ctx, lab.Config{Nodes: 1, Binary: binary})
	if err != nil {
		return 0, err
	}
	defer func() {
		if code != 0 || err != nil {
			l.KeepLogs()
			fmt.Fprintln(os.Stderr, "logs:", l.Logs())
		}
		if closing := l.Close(); err == nil {
			err = closing
		}
	}()
	n := l.Nodes[0]
	if err := n.StartDaemon(ctx, lab.DaemonConfig{}); err != nil {
		return 0, err
	}
	self := n.Command(ctx, append([]string{os.Args[0]}, os.Args[1:]...)...)
	self.Env = append(self.Env, inNode+"=1")
	self.Stdout, self.Stderr = os.Stdout, os.Stderr
	if err := self.Run(); err != nil {
		if self.ProcessState == nil {
			return 0, err
		}
		code = self.ProcessState.ExitCode()
	}
	return code, nil
}

// controller starts libnetwork as dockerd does, without packet filter rules: this test is about the plugin.
func controller(t *testing.T) *libnetwork.Controller {
	t.Helper()
	bridge := options.Generic{netlabel.GenericData: options.Generic{"EnableIPTables": false, "EnableIP6Tables": false}}
	c, err := libnetwork.New(t.Context(), config.OptionDataDir(t.TempDir()),
		// One for all controllers: libnetwork remembers the first in a variable of the process.
		config.OptionExecRoot("/run/docker"),
		config.OptionDriverConfig("bridge", bridge),
		// docker_gwbridge takes its subnet from these.
		config.OptionDefaultAddressPoolConfig(ipamutils.GetLocalScopeDefaultNetworks()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

// A request is one `docker network create`.
type request struct {
	name     string
	v4, v6   []*libnetwork.IpamConf
	internal bool
	options  map[string]string
}

// create does what dockerd does for `docker network create -d custom-overlay --ipam-driver custom-overlay`.
func create(t *testing.T, c *libnetwork.Controller, r request) (*libnetwork.Network, error) {
	t.Helper()
	given := map[string]string{"network": r.name}
	for key, value := range r.options {
		given[key] = value
	}
	all := []libnetwork.NetworkOption{
		libnetwork.NetworkOptionIpam(driverName, "", r.v4, r.v6, map[string]string{"network": r.name}),
		libnetwork.NetworkOptionEnableIPv4(len(r.v4) > 0),
		libnetwork.NetworkOptionEnableIPv6(len(r.v6) > 0),
		libnetwork.NetworkOptionGeneric(options.Generic{
			netlabel.EnableIPv4: len(r.v4) > 0, netlabel.EnableIPv6: len(r.v6) > 0, netlabel.GenericData: given,
		}),
	}
	if r.internal {
		all = append(all, libnetwork.NetworkOptionInternalNetwork())
	}
	id := strings.Repeat(fmt.Sprintf("%x", time.Now().UnixNano()), 5)[:64]
	return c.NewNetwork(t.Context(), driverName, r.name, id, all...)
}

func mustCreate(t *testing.T, c *libnetwork.Controller, r request) *libnetwork.Network {
	t.Helper()
	n, err := create(t, c, r)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// attach makes an endpoint and a sandbox and joins them, as the start of a container does.
func attach(t *testing.T, c *libnetwork.Controller, n *libnetwork.Network, name string,
	endpoint ...libnetwork.EndpointOption,
) (*libnetwork.Endpoint, *libnetwork.Sandbox) {
	t.Helper()
	ep, err := n.CreateEndpoint(t.Context(), name, endpoint...)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	sb, err := c.NewSandbox(t.Context(), n.ID()[:32]+name, libnetwork.OptionHostsPath(filepath.Join(dir, "hosts")),
		libnetwork.OptionResolvConfPath(filepath.Join(dir, "resolv.conf")))
	if err != nil {
		t.Fatal(err)
	}
	if err := ep.Join(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
	return ep, sb
}

// detach undoes attach and reports errors.
func detach(t *testing.T, ep *libnetwork.Endpoint, sb *libnetwork.Sandbox) {
	t.Helper()
	if err := ep.Leave(t.Context(), sb); err != nil {
		t.Error(err)
	}
	if err := ep.Delete(t.Context(), false); err != nil {
		t.Error(err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// in runs a command in a sandbox's network namespace.
func in(t *testing.T, sb *libnetwork.Sandbox, args ...string) (string, error) {
	t.Helper()
	enter := append([]string{"--net=" + sb.Key()}, args...)
	out, err := exec.CommandContext(t.Context(), "nsenter", enter...).CombinedOutput()
	return string(out), err
}

func pool(cidr string) []*libnetwork.IpamConf { return []*libnetwork.IpamConf{{PreferredPool: cidr}} }

func TestTwoEndpointsOfANetworkReachEachOther(t *testing.T) {
	c := controller(t)
	n := mustCreate(t, c, request{name: "pair", v4: pool("10.71.0.0/24"), v6: pool("fd71::/64")})
	first, firstBox := attach(t, c, n, "first")
	second, secondBox := attach(t, c, n, "second")
	for _, addr := range []*net.IPNet{second.Iface().Address(), second.Iface().AddressIPv6()} {
		if addr == nil {
			t.Fatal("the endpoint lacks an address of one family")
		}
		if out, err := in(t, firstBox, "busybox", "ping", "-c", "1", "-W", "3", addr.IP.String()); err != nil {
			t.Errorf("ping %s: %v\n%s", addr, err, out)
		}
	}
	if out, err := in(t, firstBox, "busybox", "ping", "-c", "1", "-W", "1", "10.71.0.200"); err == nil {
		t.Errorf("an address that nobody has answered:\n%s", out)
	}
	detach(t, first, firstBox)
	detach(t, second, secondBox)
	if err := n.Delete(); err != nil {
		t.Error(err)
	}
}

// Docker's gateway network gives the default route, unless the network is internal.
func TestOnlyANetworkThatIsNotInternalGetsADefaultRoute(t *testing.T) {
	c := controller(t)
	for _, internal := range []bool{false, true} {
		name := fmt.Sprintf("internal-%t", internal)
		n := mustCreate(t, c, request{name: name, v4: pool("10.72.0.0/24"), internal: internal})
		ep, sb := attach(t, c, n, "one")
		routes, err := in(t, sb, "ip", "route")
		if err != nil {
			t.Fatal(err, routes)
		}
		if got := strings.Contains(routes, "default via"); got == internal {
			t.Errorf("internal=%t, but routes are:\n%s", internal, routes)
		}
		detach(t, ep, sb)
		if err := n.Delete(); err != nil {
			t.Error(err)
		}
	}
}

func TestChosenAddressIsGivenOnceAndFreeAfterDelete(t *testing.T) {
	c := controller(t)
	n := mustCreate(t, c, request{name: "chosen", v4: pool("10.73.0.0/24")})
	want := net.IPv4(10, 73, 0, 77)
	ep, err := n.CreateEndpoint(t.Context(), "holder", libnetwork.CreateOptionIpam(want, nil, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	if got := ep.Iface().Address().IP; !got.Equal(want) {
		t.Errorf("address %s, want %s", got, want)
	}
	if _, err := n.CreateEndpoint(t.Context(), "rival", libnetwork.CreateOptionIpam(want, nil, nil, nil)); err == nil {
		t.Error("the address was given twice")
	} else if !strings.Contains(err.Error(), "10.73.0.77") {
		t.Errorf("the error does not name the address: %v", err)
	}
	if err := ep.Delete(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	again, err := n.CreateEndpoint(t.Context(), "heir", libnetwork.CreateOptionIpam(want, nil, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Delete(t.Context(), false); err != nil {
		t.Error(err)
	}
	if err := n.Delete(); err != nil {
		t.Error(err)
	}
}

// What netdriver says about bad input arrives at Docker's user.
func TestErrorsReachTheUserOfLibnetwork(t *testing.T) {
	tests := []struct {
		name    string
		request request
		want    []string
	}{
		{"unknown option", request{name: "bad", v4: pool("10.74.0.0/24"), options: map[string]string{"colour": "red"}},
			[]string{"colour"}},
		{"VNI out of range", request{name: "bad", v4: pool("10.74.0.0/24"), options: map[string]string{"vni": "16777216"}},
			[]string{"vni", "16777216", "16777215"}},
		{"VNI not a number", request{name: "bad", v4: pool("10.74.0.0/24"), options: map[string]string{"vni": "ten"}},
			[]string{"vni", "ten"}},
		{"MTU larger than the underlay's", request{name: "bad", v4: pool("10.74.0.0/24"),
			options: map[string]string{"mtu": "9000"}}, []string{"9000", "1450"}},
		{"bad name", request{name: "no/slash", v4: pool("10.74.0.0/24")}, []string{"no/slash"}},
		{"unknown mode", request{name: "bad", v4: pool("10.74.0.0/24"), options: map[string]string{"mode": "magic"}},
			[]string{"magic", "overlay"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := controller(t)
			n, err := create(t, c, test.request)
			if err == nil {
				n.Delete()
				t.Fatal("the network was created")
			}
			for _, word := range test.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("the error lacks %q: %v", word, err)
				}
			}
			// The refused network leaves nothing that would be in the way of a correct one.
			good := mustCreate(t, c, request{name: "good", v4: test.request.v4})
			if err := good.Delete(); err != nil {
				t.Error(err)
			}
		})
	}
}
