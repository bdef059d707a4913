package ipam

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/netdriver/netdriver/store"
)

// FuzzRequest: no request makes the service panic, or lease what a container cannot have.
func FuzzRequest(f *testing.F) {
	n := newNode(f, store.NewMemory(), "n1")
	id := n.web("10.10.0.0/24")
	for _, method := range []string{"RequestPool", "ReleasePool", "RequestAddress", "ReleaseAddress"} {
		f.Add(method, LocalSpace, "10.11.0.0/24", "10.11.0.0/25", "network", "db", true)
		f.Add(method, id, "10.10.0.5", "", "com.docker.network.endpoint.macaddress", "02:42:00:00:00:01", false)
		f.Add(method, id, "10.10.0.9/24", "", "RequestAddressType", "com.docker.network.gateway", false)
		f.Add(method, LocalSpace+"/fd00::/64/fd00::/80", "::ffff:10.0.0.1", "", "", "", true)
	}
	f.Fuzz(func(t *testing.T, method, space, address, sub, option, value string, v6 bool) {
		n.t = t
		if strings.ContainsAny(method, "/?#% ") || strings.ContainsFunc(method, func(r rune) bool { return r < ' ' || r > '~' }) {
			return
		}
		req := map[string]any{
			"AddressSpace": space, "PoolID": space, "Pool": address, "Address": address, "SubPool": sub, "V6": v6,
			"Options": map[string]string{option: value},
		}
		var res struct{ Address, Pool string }
		if n.call(method, req, &res) != nil {
			return
		}
		if res.Address != "" {
			p, err := netip.ParsePrefix(res.Address)
			if err != nil || checkUsable(p.Masked(), p.Addr()) != nil {
				t.Errorf("%s %+v leased %q", method, req, res.Address)
			}
		}
		if res.Pool != "" {
			if _, err := parseSubnet(res.Pool); err != nil {
				t.Errorf("%s %+v gave pool %q: %v", method, req, res.Pool, err)
			}
		}
	})
}
