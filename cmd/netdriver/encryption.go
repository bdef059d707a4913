package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"time"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/firewall"
	"github.com/netdriver/netdriver/internal/cluster"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/keying"
	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/ipsec/xfrm"
	"github.com/netdriver/netdriver/store"
)

// openIdentity returns what this node signs with: the key of its cluster certificate, or one of its own where the store is
// the user's.
func openIdentity(cfg config.Config, state *cluster.State, node *store.Node) (keying.Identity, error) {
	if state != nil {
		return cluster.OpenIdentity(cluster.FilesIn(cfg.DataDir), time.Now)
	}
	pinned, err := keying.OpenPinned(cfg.DataDir, untrusted(cfg.Store))
	if err != nil {
		return nil, err
	}
	node.Key, err = pinned.Public()
	return pinned, err
}

// untrusted says why the records of a store cannot be believed: whoever reaches it can write them. On this host only root
// can, or whoever may do all the same.
func untrusted(store []string) error {
	for _, text := range store {
		u, err := url.Parse(text)
		if err != nil {
			return err
		}
		a, err := netip.ParseAddr(u.Hostname())
		if u.Scheme != "https" && u.Hostname() != "localhost" && (err != nil || !a.IsLoopback()) {
			return fmt.Errorf("the store %s has no TLS, so anybody in the network could replace this cluster's keys: give it "+
				"certificates and use https, or make a cluster with `netdriver cluster init`", text)
		}
	}
	return nil
}

// openXFRM returns the kernel's IPsec. A host without runs all the same, without encrypted networks.
func openXFRM(log *slog.Logger) ipsec.Kernel {
	kernel, err := xfrm.Open("")
	if err != nil {
		log.Info("no network can be encrypted on this host", "reason", err)
		return keying.NoKernel{Err: err}
	}
	return kernel
}

// keys makes what keeps the keys of encrypted networks.
func keys(s store.Store, at site, plane *dataplane.Plane, log *slog.Logger) *keying.Keying {
	return keying.New(keying.Config{
		Store: s, Kernel: at.ipsec, Filter: at.filter.lock(), Identity: at.identity, Node: at.node, Log: log,
		Encap: keying.OpenEncap,
		InUse: func(ctx context.Context, port uint16) (bool, error) {
			present, err := plane.Present(ctx)
			for _, n := range present {
				if n.VXLAN.Present && n.VXLAN.Port == port {
					return true, err
				}
			}
			return false, err
		},
	})
}

// lock is the filter's part in encryption.
func (h hostFilter) lock() keying.Filter {
	if h.filter == nil {
		return keying.NoFilter{Err: errors.New(h.lack)}
	}
	return lock{h.filter}
}

// lock keeps clear text from the port of encrypted networks.
type lock struct{ filter *firewall.Filter }

// Apply implements keying.Filter.
func (l lock) Apply(ctx context.Context, port uint16) error {
	rules := firewall.Ruleset{Owner: firewall.OwnerLock}
	if port != 0 {
		rules = firewall.Lock(port)
	}
	_, err := l.filter.Apply(ctx, rules)
	return err
}

// Problem implements keying.Filter.
func (l lock) Problem() error { return l.filter.Problem() }

// Drops implements keying.Filter.
func (l lock) Drops(ctx context.Context) (in, out uint64, err error) {
	counts, err := l.filter.Counts(ctx, firewall.OwnerLock)
	return counts[firewall.CountPlainIn].Packets, counts[firewall.CountPlainOut].Packets, err
}
