package store_test

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

var (
	aStatus = store.Status{Applied: map[string]int64{"web": 7}, Problems: map[string]string{"db": "no"}, Updated: created}
	aPool   = store.Pool{
		Subnet: netip.MustParsePrefix("10.1.0.0/16"), Gateway: netip.MustParseAddr("10.1.0.1"), Network: "web",
		Claims: []store.Claim{{Node: "n1", Since: created}}, Creator: "n1", Created: created,
	}
	aLease = store.Lease{
		Address: netip.MustParseAddr("fd00::2"), Kind: store.LeaseEndpoint, Node: "n1", Endpoint: "e1",
		MAC: vxlan.MAC{2, 0, 0, 0, 0, 1}, Created: created,
	}
)

func TestRecordsSurviveTheStore(t *testing.T) {
	full := network("web")
	full.Subnets = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00::/64")}
	full.Members = []store.Member{{Node: "n1", DockerID: strings.Repeat("d", 64), Since: created}}
	full.Internal = true
	roundTrip(t, node("n1", "2001:db8::1"))
	roundTrip(t, aStatus)
	roundTrip(t, full)
	roundTrip(t, aPool)
	roundTrip(t, store.Pool{Subnet: aPool.Subnet, Created: created})
	roundTrip(t, aLease)
	roundTrip(t, store.Lease{Address: aLease.Address, Created: created})
	roundTrip(t, endpoint("web", 1))
}

func roundTrip[R store.Record](t *testing.T, want R) {
	t.Helper()
	got, err := store.Decode[R](store.KV{Key: "k", Value: store.Encode(want)})
	if err != nil {
		t.Errorf("%T: %v", want, err)
	} else if !reflect.DeepEqual(want, got) {
		t.Errorf("%T came back as %+v, want %+v", want, got, want)
	}
}

func TestBadRecordsAreRefusedWithTheirKey(t *testing.T) {
	bad := func(change func(*store.Endpoint)) string {
		e := endpoint("web", 1)
		change(&e)
		return string(store.Encode(e))
	}
	decodeNode, decodeNetwork := decoder[store.Node](), decoder[store.Network]()
	decodePool, decodeEndpoint := decoder[store.Pool](), decoder[store.Endpoint]()
	for name, c := range map[string]struct {
		decode      func(store.KV) error
		value, want string
	}{
		"nothing":           {decodeNode, ``, "JSON"},
		"no record":         {decodeNode, `{"v":1}`, "k"},
		"null":              {decodeNode, `null`, "version 0"},
		"later version":     {decodeNode, `{"v":3,"r":{"name":"n1","vtep":"192.0.2.1"}}`, "upgrade netdriver"},
		"wrong type":        {decodeNode, `{"v":1,"r":{"name":5}}`, "name"},
		"node without name": {decodeNode, `{"v":1,"r":{"vtep":"192.0.2.1"}}`, "node name"},
		"node without VTEP": {decodeNode, `{"v":1,"r":{"name":"n1"}}`, "VTEP"},
		"bad VTEP":          {decodeNode, `{"v":1,"r":{"name":"n1","vtep":"192.0.2"}}`, "192.0.2"},
		"network: VNI":      {decodeNetwork, `{"v":1,"r":{"name":"w","vni":16777216,"port":1,"mtu":1400}}`, "VNI"},
		"network: port":     {decodeNetwork, `{"v":1,"r":{"name":"w","vni":5000,"mtu":1400}}`, "port"},
		"network: MTU":      {decodeNetwork, `{"v":1,"r":{"name":"w","vni":5000,"port":1}}`, "MTU"},
		"network: subnet": {decodeNetwork, `{"v":1,"r":{"name":"w","vni":5000,"port":1,"mtu":1400,"subnets":[""]}}`,
			"subnet"},
		"network: rekey of one in clear": {decodeNetwork, `{"v":2,"r":{"name":"w","vni":5000,"port":1,"mtu":1400,"rekey":1}}`,
			"encrypted false"},
		"pool: host bits":    {decodePool, `{"v":1,"r":{"subnet":"10.0.0.1/8"}}`, "10.0.0.1/8"},
		"pool: no subnet":    {decodePool, `{"v":1,"r":{}}`, "subnet"},
		"lease: no address":  {decoder[store.Lease](), `{"v":1,"r":{}}`, "address"},
		"endpoint: id":       {decodeEndpoint, bad(func(e *store.Endpoint) { e.ID = "a/b" }), "a/b"},
		"endpoint: node":     {decodeEndpoint, bad(func(e *store.Endpoint) { e.Node = "" }), "node"},
		"endpoint: MAC":      {decodeEndpoint, bad(func(e *store.Endpoint) { e.MAC = vxlan.MAC{} }), "MAC"},
		"endpoint: address":  {decodeEndpoint, bad(func(e *store.Endpoint) { e.IPv4 = netip.Prefix{} }), "address"},
		"endpoint: bad time": {decodeEndpoint, `{"v":1,"r":{"created":"yesterday"}}`, "yesterday"},
	} {
		err := c.decode(store.KV{Key: "k", Value: []byte(c.value)})
		if !errors.Is(err, store.ErrRecord) {
			t.Errorf("%s: %v, want ErrRecord", name, err)
		} else if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), " k: ") {
			t.Errorf("%s: %q does not say the key and %q", name, err, c.want)
		}
	}
}

// A daemon that knows only version 1 does not know that a network is encrypted, so it must not read such a one.
func TestAnEncryptedNetworkIsOfALaterVersionThanOneInClear(t *testing.T) {
	nw := network("web")
	for version, change := range map[string]func(){`{"v":1,`: func() {}, `{"v":2,`: func() { nw.Encrypted, nw.Rekey = true, time.Hour }} {
		nw = network("web")
		change()
		text := store.Encode(nw)
		got, err := store.Decode[store.Network](store.KV{Key: "k", Value: text})
		if !strings.HasPrefix(string(text), version) || err != nil || got.Encrypted != nw.Encrypted || got.Rekey != nw.Rekey {
			t.Errorf("%s is read as %+v, error %v; want version %s", text, got, err, version)
		}
	}
}

func decoder[R store.Record]() func(store.KV) error {
	return func(kv store.KV) error {
		_, err := store.Decode[R](kv)
		return err
	}
}

func TestKeysAreUnderTheirPrefix(t *testing.T) {
	subnet, addr := netip.MustParsePrefix("fd00::/64"), netip.MustParseAddr("fd00::2")
	for got, want := range map[string]string{
		store.NodeKey("n"):                          "nodes/n",
		store.AliveKey("n"):                         "alive/n",
		store.StatusKey("n"):                        "status/n",
		store.NetworkKey("w"):                       "networks/w",
		store.VNIKey(7):                             "vnis/7",
		store.PoolKey(subnet):                       "pools/fd00::_64",
		store.CursorKey(subnet):                     "cursors/fd00::_64",
		store.LeaseKey(subnet, addr):                "leases/fd00::_64/fd00::2",
		store.EndpointKey("w", "e"):                 "endpoints/w/e",
		store.MACKey("w", vxlan.MAC{2, 0, 0, 0, 1}): "macs/w/02:00:00:00:01:00",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func FuzzDecodeNode(f *testing.F)     { fuzz(f, node("n1", "192.0.2.1")) }
func FuzzDecodeStatus(f *testing.F)   { fuzz(f, aStatus) }
func FuzzDecodeNetwork(f *testing.F)  { fuzz(f, network("web")) }
func FuzzDecodePool(f *testing.F)     { fuzz(f, aPool) }
func FuzzDecodeLease(f *testing.F)    { fuzz(f, aLease) }
func FuzzDecodeEndpoint(f *testing.F) { fuzz(f, endpoint("web", 1)) }

// fuzz checks that no bytes make Decode panic, and that what it accepts is written and read as the same record.
func fuzz[R store.Record](f *testing.F, seed R) {
	f.Add(store.Encode(seed))
	f.Add([]byte(`{"v":1,"r":{}}`))
	f.Add([]byte(`{"v":1,"r":null}`))
	f.Add([]byte(`{"v":2}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := store.Decode[R](store.KV{Key: "k", Value: b})
		if err != nil {
			if !errors.Is(err, store.ErrRecord) {
				t.Errorf("%v does not wrap ErrRecord", err)
			}
			return
		}
		first := store.Encode(r)
		again, err := store.Decode[R](store.KV{Key: "k", Value: first})
		if err != nil {
			t.Fatalf("%s is not accepted again: %v", first, err)
		}
		if second := store.Encode(again); string(first) != string(second) {
			t.Errorf("%s became %s", first, second)
		}
	})
}
