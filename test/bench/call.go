package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/docker/go-plugins-helpers/ipam"
	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/vxlan"
)

// An engine plays dockerd to one daemon: it makes the calls of Docker's plugin protocol in the order in which Docker
// does, on the daemon's own socket.
type engine struct {
	client *http.Client
}

func newEngine(dial func(context.Context) (net.Conn, error)) *engine {
	// As many idle connections as there are calls at once: Docker, too, keeps its connections.
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }, MaxIdleConnsPerHost: 64,
	}
	return &engine{client: &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

func (e *engine) close() { e.client.CloseIdleConnections() }

// call makes one call. An answer that is an error is returned as one.
func (e *engine) call(ctx context.Context, method string, request, response any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := e.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", method, answer.Status, bytes.TrimSpace(text))
	}
	if response == nil {
		return nil
	}
	return json.Unmarshal(text, response)
}

// A dockerNetwork is one Docker network of one engine.
type dockerNetwork struct {
	*engine
	id, poolID string
}

// createNetwork does what `docker network create --opt network=NAME --subnet SUBNET` does. More options are names, each followed by
// its value.
func (e *engine) createNetwork(ctx context.Context, name, subnet string, more ...string) (*dockerNetwork, error) {
	options := map[string]string{"network": name}
	for i := 0; i+1 < len(more); i += 2 {
		options[more[i]] = more[i+1]
	}
	var spaces ipam.AddressSpacesResponse
	if err := e.call(ctx, "IpamDriver.GetDefaultAddressSpaces", plugin.Empty{}, &spaces); err != nil {
		return nil, err
	}
	var pool ipam.RequestPoolResponse
	err := e.call(ctx, "IpamDriver.RequestPool", ipam.RequestPoolRequest{
		AddressSpace: spaces.LocalDefaultAddressSpace, Pool: subnet, Options: map[string]string{"network": name},
	}, &pool)
	if err != nil {
		return nil, err
	}
	var gateway ipam.RequestAddressResponse
	err = e.call(ctx, "IpamDriver.RequestAddress", ipam.RequestAddressRequest{
		PoolID: pool.PoolID, Options: map[string]string{"RequestAddressType": "com.docker.network.gateway"},
	}, &gateway)
	if err != nil {
		return nil, err
	}
	n := &dockerNetwork{engine: e, id: newID(), poolID: pool.PoolID}
	return n, e.call(ctx, "NetworkDriver.CreateNetwork", network.CreateNetworkRequest{
		NetworkID: n.id,
		Options:   map[string]any{"com.docker.network.generic": options},
		IPv4Data: []*network.IPAMData{{
			AddressSpace: spaces.LocalDefaultAddressSpace, Pool: pool.Pool, Gateway: gateway.Address,
		}},
	}, nil)
}

// requestAddress asks for any address for a MAC.
func (n *dockerNetwork) requestAddress(ctx context.Context, mac vxlan.MAC) (string, error) {
	var a ipam.RequestAddressResponse
	err := n.call(ctx, "IpamDriver.RequestAddress", ipam.RequestAddressRequest{
		PoolID: n.poolID, Options: map[string]string{"com.docker.network.endpoint.macaddress": mac.String()},
	}, &a)
	return a.Address, err
}

// createEndpoint makes an endpoint with an address that requestAddress gave.
func (n *dockerNetwork) createEndpoint(ctx context.Context, endpoint, address string, mac vxlan.MAC) error {
	return n.call(ctx, "NetworkDriver.CreateEndpoint", network.CreateEndpointRequest{
		NetworkID: n.id, EndpointID: endpoint,
		Interface: &network.EndpointInterface{Address: address, MacAddress: mac.String()},
	}, nil)
}

// removeEndpoint removes an endpoint and gives its address back.
func (n *dockerNetwork) removeEndpoint(ctx context.Context, endpoint, address string) error {
	remove := network.DeleteEndpointRequest{NetworkID: n.id, EndpointID: endpoint}
	if err := n.call(ctx, "NetworkDriver.DeleteEndpoint", remove, nil); err != nil {
		return err
	}
	bare, _, _ := strings.Cut(address, "/")
	return n.call(ctx, "IpamDriver.ReleaseAddress", ipam.ReleaseAddressRequest{PoolID: n.poolID, Address: bare}, nil)
}

func (n *dockerNetwork) join(ctx context.Context, endpoint string) error {
	return n.call(ctx, "NetworkDriver.Join", network.JoinRequest{NetworkID: n.id, EndpointID: endpoint}, nil)
}

// newID is an id as Docker makes them.
func newID() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// newMAC is an address as Docker makes them.
func newMAC() vxlan.MAC {
	m := vxlan.MAC{0x02, 0x42}
	rand.Read(m[2:]) // never fails
	return m
}
