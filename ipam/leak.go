package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/netdriver/netdriver/store"
)

// Leak is a lease that no endpoint, task or service has.
type Leak struct {
	store.Lease
	Subnet netip.Prefix `json:"subnet"`
	// Why says whose it was.
	Why string `json:"why"`

	kv store.KV
}

// Leaks returns the leases older than before that nothing has: of a node, without an endpoint, or of a swarm, of an address
// that no task or service is known to have (see Orphans). A container that starts has a lease without endpoint for
// moments, and one that is long in starting for longer: before has to leave it time.
func Leaks(ctx context.Context, s store.Store, before time.Time) ([]Leak, error) {
	kvs, _, err := s.List(ctx, store.LeasePrefix)
	if err != nil {
		return nil, fmt.Errorf("look for leaked addresses: %w", err)
	}
	// Read after the leases: what has got an owner meanwhile is no leak.
	owned, err := owners(ctx, s)
	if err != nil {
		return nil, err
	}
	var out []Leak
	var errs []error
	for _, kv := range kvs {
		l, err := store.Decode[store.Lease](kv)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if l.Kind != store.LeaseEndpoint || !l.Created.Before(before) || owned[l.Address] {
			continue
		}
		leak := Leak{Lease: l, kv: kv, Why: "no endpoint of " + l.Node + " has it"}
		if l.Swarm && l.Node == "" {
			leak.Why = "only a swarm has it, for no task or service that is known"
		}
		leak.Subnet = subnetOf(kv.Key)
		out = append(out, leak)
	}
	return out, errors.Join(errs...)
}

// subnetOf reads the subnet in a lease's key, leases/ADDRESS_BITS/ADDRESS (store.LeaseKey).
func subnetOf(key string) netip.Prefix {
	subnet, _, _ := strings.Cut(strings.TrimPrefix(key, store.LeasePrefix), "/")
	p, _ := netip.ParsePrefix(strings.Replace(subnet, "_", "/", 1)) // the zero one for a key that is none
	return p
}

// owners are the addresses that an endpoint, a task or a service has.
func owners(ctx context.Context, s store.Store) (map[netip.Addr]bool, error) {
	out := map[netip.Addr]bool{}
	note := func(all ...netip.Addr) {
		for _, a := range all {
			out[a] = true
		}
	}
	endpoints, _, err := s.List(ctx, store.EndpointPrefix)
	if err != nil {
		return nil, err
	}
	for _, kv := range endpoints {
		e, err := store.Decode[store.Endpoint](kv)
		if err != nil {
			return nil, fmt.Errorf("an endpoint that cannot be read may have any address: %w", err)
		}
		note(e.Addrs()...)
	}
	services, _, err := s.List(ctx, store.ServicePrefix)
	if err != nil {
		return nil, err
	}
	for _, kv := range services {
		sv, err := store.Decode[store.Service](kv)
		if err != nil {
			return nil, fmt.Errorf("a service that cannot be read may have any address: %w", err)
		}
		note(sv.VIPs...)
		for _, b := range sv.Backends {
			note(b.Addresses...)
		}
	}
	return out, nil
}

// Free frees leaks, and returns those that it freed. One that has changed meanwhile is left alone.
func Free(ctx context.Context, s store.Store, leaks []Leak) ([]Leak, error) {
	var errs []error
	freed := slices.DeleteFunc(slices.Clone(leaks), func(l Leak) bool {
		_, err := s.Commit(ctx, []store.Cond{store.Unchanged(l.kv)}, store.Delete(l.kv.Key))
		if err != nil && !errors.Is(err, store.ErrConflict) {
			errs = append(errs, err)
		}
		return err != nil
	})
	return freed, errors.Join(errs...)
}
