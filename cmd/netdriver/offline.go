package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/driver"
	"github.com/netdriver/netdriver/internal/cluster"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/control"
	"github.com/netdriver/netdriver/internal/peer"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/store/etcd"
)

// offlinePatience is how long a command waits for the records when no daemon runs.
const offlinePatience = 1500 * time.Millisecond

// offline is a diagnosis without a daemon: from the kernel, and from the store if another node has it.
type offline struct {
	*diag.Diagnosis
	end []func()
	// hangs: a daemon runs and answers nothing.
	hangs bool
}

func (o *offline) close() {
	for _, f := range slices.Backward(o.end) {
		f()
	}
}

// openOffline looks by the settings of the daemon that ran here last, or that hangs. Nothing is started and nothing is changed.
func openOffline(ctx context.Context, runDir string, hangs bool) (*offline, error) {
	cfg, err := lastSettings(runDir)
	if err != nil {
		return nil, fmt.Errorf("what the last daemon ran with: %w", err)
	}
	o := &offline{hangs: hangs}
	if err := o.open(ctx, cfg); err != nil {
		o.close()
		return nil, fmt.Errorf("look without a daemon: %w", err)
	}
	return o, nil
}

func (o *offline) open(ctx context.Context, cfg config.Config) error {
	quiet := slog.New(slog.DiscardHandler)
	id, err := nodeID(cfg.DataDir)
	if err != nil {
		return err
	}
	node := store.Node{Name: cfg.Node, ID: id, Version: version()}
	under, err := findUnderlay(cfg.Underlay, quiet)
	if err == nil {
		node.VTEP, node.UnderlayMTU = under.VTEP, under.MTU
	}
	client, state, err := elsewhere(cfg, quiet)
	if err != nil {
		return err
	}
	o.end = append(o.end, func() { _ = client.Close() })
	kernel, err := dataplane.OpenLinux(dataplane.LinuxConfig{RunDir: cfg.RunDir, Log: quiet, Look: true})
	if err != nil {
		return err
	}
	o.end = append(o.end, func() { _ = kernel.Close() })
	mirror, plane := store.NewMirror(client, quiet), dataplane.NewPlane(kernel, quiet)
	o.follow(ctx, mirror, node.Name)
	mirror.Read(func(r *store.Records) {
		if n, known := r.Nodes[node.Name]; known {
			node = n
		}
	})
	d := driver.New(driver.Config{
		Store: client, Mirror: mirror, Plane: plane, Node: node, Underlay: under.Device, Port: cfg.VXLANPort,
		EncryptedPort: cfg.EncryptedPort, Log: quiet,
	})
	files, certified := certificates(cfg, state)
	sources := diag.Sources{
		Store: client, Mirror: mirror, Plane: plane, Driver: d, Node: node, Stopped: true, Hangs: o.hangs, Site: siteOf(cfg, files, certified),
	}
	if certified && cfg.PeerPort != 0 {
		sources.Peers = peer.Client{Files: files, Port: cfg.PeerPort}
	}
	if docker, err := openDocker(cfg.DockerHost); err == nil && docker != nil {
		sources.Docker = docker.Alive
	}
	o.Diagnosis = diag.New(sources)
	return nil
}

// elsewhere is the store as far as it does not need this node's daemon.
func elsewhere(cfg config.Config, log *slog.Logger) (*etcd.Client, *cluster.State, error) {
	state, err := cluster.FilesIn(cfg.DataDir).State()
	if err != nil {
		return nil, nil, err
	}
	files, certified := certificates(cfg, state)
	dial := etcd.Config{Endpoints: cfg.Store, Cluster: cfg.Cluster, Log: log}
	switch {
	case state != nil:
		dial.Endpoints = cluster.Endpoints(*state)
	case len(cfg.Store) == 0: // the embedded one of this node, which does not run: the error says so
		dial.Endpoints = []string{"unix://" + filepath.Join(cfg.RunDir, "etcd.sock")}
	}
	if certified {
		if dial.TLS, err = etcd.ClientTLS(files.CA, files.Cert, files.Key); err != nil {
			return nil, nil, err
		}
	}
	client, err := etcd.Dial(dial)
	return client, state, err
}

// follow reads the records of this node's networks, as far as the store answers in time.
func (o *offline) follow(ctx context.Context, mirror *store.Mirror, node string) {
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = mirror.Run(running) // ends with its context
	}()
	o.end = append(o.end, func() { cancel(); <-done })
	patient, end := context.WithTimeout(ctx, offlinePatience)
	defer end()
	if err := mirror.WaitSynced(patient, ""); err != nil {
		return // the reports say that the store is away
	}
	var mine []string
	mirror.Read(func(r *store.Records) {
		for name, nw := range r.Networks {
			if slices.ContainsFunc(nw.Members, func(m store.Member) bool { return m.Node == node }) {
				mine = append(mine, name)
			}
		}
	})
	for _, name := range mine {
		mirror.Follow(name)
		if err := mirror.WaitSynced(patient, name); err != nil {
			return
		}
	}
}

// looker answers the verbs that look: a daemon, or this process.
type looker interface {
	Network(ctx context.Context, name string) (diag.NetworkReport, error)
	Networks(ctx context.Context) (diag.NetworksReport, error)
	Nodes(ctx context.Context) (diag.NodesReport, error)
	Check(ctx context.Context, peer string) (diag.CheckReport, error)
	Trace(ctx context.Context, a diag.Ask) (diag.Trace, error)
	Diff(ctx context.Context, network string) (diag.DiffReport, error)
}

// look puts a question to the daemon, or answers it here if none runs.
func (a app) look(ctx context.Context, runDir string, question func(context.Context, looker) error) error {
	client := control.NewClient(control.SocketPath(runDir))
	err := client.Awake(ctx)
	if err == nil {
		err = question(ctx, client)
	}
	hangs := errors.Is(err, control.ErrHangs)
	if !errors.Is(err, control.ErrNotRunning) && !hangs {
		return err
	}
	o, failed := openOffline(ctx, runDir, hangs)
	if errors.Is(failed, fs.ErrNotExist) {
		return err // none has run here since the host booted
	}
	if failed != nil {
		return errors.Join(err, failed)
	}
	defer o.close()
	what := "no daemon runs on this host"
	if hangs {
		what = "the daemon of this host hangs"
	}
	fmt.Fprintf(a.err, "netdriver: %s; this is what the kernel and the store tell\n", what)
	return question(ctx, o)
}
