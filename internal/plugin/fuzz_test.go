package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"
)

// reads makes a method that looks at everything in its request.
func reads[Req any](name string) Method {
	return Call(name, func(_ context.Context, req *Req) (string, error) { return fmt.Sprintf("%+v", *req), nil })
}

// all has a method for each request type that engines send.
func all() []Method {
	return []Method{
		reads[Empty]("NetworkDriver.GetCapabilities"),
		reads[network.AllocateNetworkRequest]("NetworkDriver.AllocateNetwork"),
		reads[network.FreeNetworkRequest]("NetworkDriver.FreeNetwork"),
		reads[network.CreateNetworkRequest]("NetworkDriver.CreateNetwork"),
		reads[network.DeleteNetworkRequest]("NetworkDriver.DeleteNetwork"),
		reads[network.CreateEndpointRequest]("NetworkDriver.CreateEndpoint"),
		reads[network.DeleteEndpointRequest]("NetworkDriver.DeleteEndpoint"),
		reads[network.InfoRequest]("NetworkDriver.EndpointOperInfo"),
		reads[network.JoinRequest]("NetworkDriver.Join"),
		reads[network.LeaveRequest]("NetworkDriver.Leave"),
		reads[network.DiscoveryNotification]("NetworkDriver.DiscoverNew"),
		reads[network.ProgramExternalConnectivityRequest]("NetworkDriver.ProgramExternalConnectivity"),
		reads[network.RevokeExternalConnectivityRequest]("NetworkDriver.RevokeExternalConnectivity"),
		reads[GwAllocCheckRequest]("NetworkDriver.GwAllocCheck"),
		reads[ipam.RequestPoolRequest]("IpamDriver.RequestPool"),
		reads[ipam.ReleasePoolRequest]("IpamDriver.ReleasePool"),
		reads[ipam.RequestAddressRequest]("IpamDriver.RequestAddress"),
		reads[ipam.ReleaseAddressRequest]("IpamDriver.ReleaseAddress"),
	}
}

// FuzzRequest: whatever the body, it is decoded or refused with a reason, and never more than that.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{
		"", "null", "{}", "[]", `{"NetworkID":null,"Options":null,"IPv4Data":[null]}`,
		`{"NetworkID":"n1","Options":{"com.docker.network.generic":{"vni":"5"}},"IPv4Data":[{"Pool":"10.0.0.0/24"}]}`,
		`{"NetworkID":"n1","EndpointID":"e1","Interface":{"Address":"10.0.0.5/24"},"Options":{"portmap":[{"Proto":6}]}}`,
		`{"AddressSpace":"x","Pool":"10.0.0.0/24","Options":{"network":"web"},"V6":true}`,
		`{"PoolID":"x","Address":"10.0.0.5","Options":{"RequestAddressType":1}}`,
	} {
		for i := range all() {
			f.Add(i, []byte(body))
		}
	}
	methods := all()
	s := New(Config{Methods: methods, Log: quiet()})
	f.Fuzz(func(t *testing.T, i int, body []byte) {
		m := methods[uint(i)%uint(len(methods))]
		status, answer := post(s, "POST", "/"+m.Name(), string(body))
		var failure Failure
		switch {
		case status == 200 && json.Valid([]byte(answer)):
		case status == 400 && json.Unmarshal([]byte(answer), &failure) == nil && failure.Err != "":
		default:
			t.Errorf("%s %q: status %d, answer %s", m.Name(), body, status, answer)
		}
	})
}
