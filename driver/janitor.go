package driver

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/netdriver/netdriver/store"
)

const (
	// cleanEvery is how often the janitor compares the records with what lives.
	cleanEvery = 30 * time.Second
	// cleanFirst does so after a start, until two rounds in a row have seen everything: a host that was lost has
	// containers back in the swarm's records elsewhere, and what is left of them here still answers for their addresses.
	cleanFirst = 3 * time.Second
	// settle is how old a record must be before the janitor doubts it: a call that is under way ends within 30 s (moby
	// pkg/plugins/client.go), and Docker lists a network or endpoint only when its call has returned.
	settle = time.Minute
)

// Docker says what lives on this node. It is asked outside of any call: inside one, Docker would wait for itself.
type Docker interface {
	// Endpoints returns the ids of the endpoints that a Docker network has; known is false if there is no such network.
	Endpoints(ctx context.Context, dockerID string) (ids []string, known bool, err error)
	// Swarm returns the id of the swarm that this node's engine is a manager of, or "" if it is none.
	Swarm(ctx context.Context) (id string, err error)
	// Bridges returns the names of the bridges of Docker's own bridge networks, sorted.
	Bridges(ctx context.Context) ([]string, error)
	// Wake reports that something may have changed.
	Wake(ctx context.Context) <-chan struct{}
}

// Leases are the cluster's addresses; *ipam.Service is the real one.
type Leases interface {
	// BeginTerm says that a new leader of a swarm asks for every address of a network's subnets that it has once more.
	BeginTerm(subnets []netip.Prefix)
	// Reclaim frees this node's endpoint leases that alive denies.
	Reclaim(ctx context.Context, alive func(store.Lease) bool) ([]store.Lease, error)
	// ExpireClaims gives up pools that this node asked for and never made a network of.
	ExpireClaims(ctx context.Context) error
	// LeaseNode leases an address of a pool for this node itself, which endpoint has; the same one whenever asked again.
	LeaseNode(ctx context.Context, subnet netip.Prefix, endpoint string) (netip.Addr, error)
}

// doubt counts how often in a row something recorded was not found alive.
type doubt map[string]int

// dead says whether key, not found alive once more, has now been missing in two rounds in a row.
func (s doubt) dead(key string) bool {
	s[key]++
	return s[key] >= 2
}

// clean runs the janitor until ctx ends. Docker ignores errors of DeleteNetwork, Leave, DeleteEndpoint and
// ReleaseAddress and never repeats them, so what was lost while the daemon or the store was away is found here.
func (d *Driver) clean(ctx context.Context) {
	tick := time.NewTicker(cleanFirst)
	defer tick.Stop()
	suspects := doubt{}
	for seen := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := d.cleanOnce(ctx, suspects)
		if err != nil && ctx.Err() == nil {
			d.log.Debug("cannot clean up now", "error", err)
		}
		if err == nil && seen < 2 {
			if seen++; seen == 2 {
				tick.Reset(cleanEvery)
			}
		}
	}
}

// cleanOnce is one round of the janitor.
func (d *Driver) cleanOnce(ctx context.Context, suspects doubt) error {
	ctx, cancel := context.WithTimeout(ctx, cleanEvery)
	defer cancel()
	if err := d.cfg.Mirror.WaitSynced(ctx, ""); err != nil {
		return err
	}
	var errs []error
	if d.cfg.Docker != nil {
		for _, m := range d.memberships() {
			errs = append(errs, d.cleanMembership(ctx, m.Network, m.Member, suspects))
		}
		errs = append(errs, d.cleanSwarm(ctx, suspects))
	}
	return errors.Join(append(errs, d.cleanLeases(ctx), d.takeSeats(ctx), d.recheckConflicts(ctx))...)
}

// membership is one Docker network of this node with the network it stands for.
type membership struct {
	Network store.Network
	Member  store.Member
}

func (d *Driver) memberships() []membership {
	var out []membership
	d.cfg.Mirror.Read(func(r *store.Records) {
		for _, nw := range r.Networks {
			for _, m := range nw.Members {
				if m.Node == d.site.node {
					out = append(out, membership{nw, m})
				}
			}
		}
	})
	return out
}

// settled says whether a record is old enough to be doubted. One from before the host's boot is: whatever call made it
// has ended with it.
func (d *Driver) settled(since time.Time) bool {
	return d.cfg.Now().Sub(since) > settle || d.cfg.Booted && since.Before(d.cfg.Node.Started)
}

// cleanMembership removes what Docker no longer has: the whole membership, or single endpoints.
func (d *Driver) cleanMembership(ctx context.Context, nw store.Network, m store.Member, suspects doubt) error {
	alive, known, err := d.cfg.Docker.Endpoints(ctx, m.DockerID)
	if err != nil {
		return err
	}
	if !known {
		if d.settled(m.Since) && suspects.dead(m.DockerID) {
			d.log.Info("Docker has no such network any more", "network", nw.Name, "docker", m.DockerID)
			delete(suspects, m.DockerID)
			return d.quit(ctx, m.DockerID)
		}
		return nil
	}
	delete(suspects, m.DockerID)
	var errs []error
	for _, e := range d.endpointsOf(nw.Name, m.DockerID) {
		if slices.Contains(alive, e.ID) || !d.settled(e.Created) {
			delete(suspects, e.ID)
			continue
		}
		if suspects.dead(e.ID) {
			d.log.Info("Docker has no such endpoint any more", "network", nw.Name, "endpoint", e.ID)
			delete(suspects, e.ID)
			errs = append(errs, d.withdraw(ctx, nw, e.ID, releaseNow))
		}
	}
	return errors.Join(errs...)
}

// cleanSwarm frees networks that the swarm has removed while FreeNetwork could not be told. Only managers know, and
// only of their own swarm: a network of which no manager has said yet whose it is stays.
func (d *Driver) cleanSwarm(ctx context.Context, suspects doubt) error {
	allotted := d.allotted()
	if len(allotted) == 0 {
		return nil
	}
	swarm, err := d.cfg.Docker.Swarm(ctx)
	if err != nil || swarm == "" {
		return err
	}
	var errs []error
	for _, nw := range allotted {
		_, known, err := d.cfg.Docker.Endpoints(ctx, nw.Swarm)
		switch {
		case err != nil:
			errs = append(errs, err)
		case known && nw.SwarmCluster != swarm:
			errs = append(errs, d.tag(ctx, nw.Swarm, swarm))
		case known:
			delete(suspects, nw.Swarm)
		case nw.SwarmCluster == swarm && suspects.dead(nw.Swarm):
			d.log.Info("the swarm has no such network any more", "network", nw.Name, "docker", nw.Swarm)
			errs = append(errs, d.free(ctx, nw.Swarm))
		}
	}
	return errors.Join(errs...)
}

// allotted returns the networks of swarms that are old enough to be doubted.
func (d *Driver) allotted() (out []store.Network) {
	d.cfg.Mirror.Read(func(r *store.Records) {
		for _, nw := range r.Networks {
			if nw.Swarm != "" && d.cfg.Now().Sub(nw.Created) > settle {
				out = append(out, nw)
			}
		}
	})
	return out
}

// tag notes which swarm has a network.
func (d *Driver) tag(ctx context.Context, dockerID, swarm string) error {
	_, err := d.commit(ctx, func() (t txn, err error) {
		kv, nw, err := d.ofSwarm(ctx, dockerID)
		if err != nil || nw.Name == "" {
			return t, err
		}
		nw.SwarmCluster = swarm
		t.require(store.Unchanged(kv))
		t.write(store.Put(kv.Key, store.Encode(nw)))
		return t, nil
	})
	return err
}

// endpointsOf returns this node's endpoints of one Docker network.
func (d *Driver) endpointsOf(network, dockerID string) []store.Endpoint {
	var out []store.Endpoint
	d.cfg.Mirror.Read(func(r *store.Records) {
		for _, e := range r.Endpoints[network] {
			if e.Node == d.site.node && e.DockerID == dockerID {
				out = append(out, e)
			}
		}
	})
	return out
}

// cleanLeases frees this node's leases that no endpoint has, once every network's endpoints have been read.
func (d *Driver) cleanLeases(ctx context.Context) error {
	if d.cfg.Leases == nil {
		return nil
	}
	holders := map[string]bool{}
	for _, m := range d.memberships() {
		if !d.cfg.Mirror.Synced(m.Network.Name) {
			return nil
		}
		for _, e := range d.endpointsOf(m.Network.Name, m.Member.DockerID) {
			for _, a := range e.Addrs() {
				holders[a.String()] = true
			}
		}
	}
	freed, err := d.cfg.Leases.Reclaim(ctx, func(l store.Lease) bool {
		return holders[l.Address.String()] || !d.settled(l.Created)
	})
	for _, l := range freed {
		d.log.Info("freed an address without owner", "address", l.Address, "endpoint", l.Endpoint, "since", l.Created)
	}
	return errors.Join(err, d.cfg.Leases.ExpireClaims(ctx))
}
