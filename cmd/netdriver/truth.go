package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/netdriver/netdriver/internal/cluster"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/store/etcd"
)

// truth is the store: a client, and the server if it is the embedded one.
type truth struct {
	client *etcd.Client
	server *etcd.Server
	// state is the node's part in a cluster of `netdriver cluster`; nil if it is in none.
	state *cluster.State
}

// external says whether the store is one that the user looks after.
func external(cfg config.Config) bool { return len(cfg.Store) > 0 || len(cfg.StoreListen) > 0 }

// openTruth starts the embedded store, or prepares to use one elsewhere, which need not answer yet.
func openTruth(ctx context.Context, cfg config.Config, log *slog.Logger) (*truth, error) {
	state, err := cluster.FilesIn(cfg.DataDir).State()
	if err != nil {
		return nil, err
	}
	if state != nil && external(cfg) {
		return nil, fmt.Errorf("this node is in a cluster of `netdriver cluster` (%s): omit --store and --store-listen, "+
			"or leave it "+
			"with `netdriver cluster leave`", filepath.Join(cfg.DataDir, "cluster"))
	}
	t := &truth{state: state}
	dial := etcd.Config{Endpoints: cfg.Store, Cluster: cfg.Cluster, Log: log}
	switch {
	case state != nil:
		err = t.openCluster(ctx, cfg, &dial, log)
	case len(cfg.Store) == 0:
		err = t.embed(ctx, &dial, etcd.EmbedConfig{
			DataDir: cfg.DataDir, RunDir: cfg.RunDir, Listen: cfg.StoreListen, Cert: cfg.StoreCert, Key: cfg.StoreKey,
			CA: cfg.StoreCA, Log: log,
		})
	case cfg.StoreCA != "":
		dial.TLS, err = etcd.ClientTLS(cfg.StoreCA, cfg.StoreCert, cfg.StoreKey)
	}
	if err == nil {
		t.client, err = etcd.Dial(dial)
	}
	if err != nil {
		t.close(log)
		return nil, err
	}
	return t, nil
}

// embed starts a store in this process.
func (t *truth) embed(ctx context.Context, dial *etcd.Config, cfg etcd.EmbedConfig) (err error) {
	ctx, cancel := context.WithTimeout(ctx, embedTimeout)
	defer cancel()
	if t.server, err = etcd.Embed(ctx, cfg); err != nil {
		return err
	}
	dial.Endpoints, dial.Server = []string{t.server.Endpoint()}, t.server
	return nil
}

// openCluster opens the store of a cluster: the node's own member, or those of others.
func (t *truth) openCluster(ctx context.Context, cfg config.Config, dial *etcd.Config, log *slog.Logger) error {
	files, s := cluster.FilesIn(cfg.DataDir), *t.state
	if s.Store != cluster.FirstStore {
		// What the node had before it joined was given up then.
		if err := os.RemoveAll(filepath.Join(cfg.DataDir, cluster.FirstStore)); err != nil {
			return err
		}
	}
	tls, err := etcd.ClientTLS(files.CA(), files.Cert(), files.Key())
	if err != nil {
		return err
	}
	if s.Role == cluster.RoleClient {
		dial.Endpoints, dial.TLS = cluster.Endpoints(s), tls
		return nil
	}
	err = t.embed(ctx, dial, etcd.EmbedConfig{
		DataDir: cfg.DataDir, RunDir: cfg.RunDir, Cert: files.Cert(), Key: files.Key(), CA: files.CA(), Log: log,
		Listen: []string{"https://" + netip.AddrPortFrom(s.Address, s.Ports.Store).String()},
		Member: &etcd.Member{
			Name: cfg.Node, Dir: s.Store, Peer: cluster.PeerURL(s), Initial: s.Initial, CRL: files.CRL(),
		},
	})
	if err != nil && len(s.Members) > 1 {
		return fmt.Errorf("%w; too few of the other members (%v) answer, or this node was removed from the cluster: then "+
			"remove %s "+
			"and join again", err, s.Members, filepath.Join(cfg.DataDir, "cluster"))
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, embedTimeout)
	defer cancel()
	return t.server.PromoteLearner(ctx, cluster.Endpoints(s), tls)
}

// run waits for the embedded store to fail, which a daemon cannot survive.
func (t *truth) run(ctx context.Context) error {
	if t.server == nil {
		<-ctx.Done()
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-t.server.Failed():
		return errors.Join(errors.New("the embedded store has stopped"), err)
	}
}

func (t *truth) close(log *slog.Logger) {
	if t.client != nil {
		if err := t.client.Close(); err != nil {
			log.Warn("cannot close the store's client", "error", err)
		}
	}
	if t.server != nil {
		t.server.Close()
	}
}
