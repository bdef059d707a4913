package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/go-plugins-helpers/network"
	"golang.org/x/sync/errgroup"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/dataplane/lan"
	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/driver"
	"github.com/netdriver/netdriver/internal/cluster"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/control"
	"github.com/netdriver/netdriver/internal/engine"
	"github.com/netdriver/netdriver/internal/keying"
	"github.com/netdriver/netdriver/internal/metrics"
	"github.com/netdriver/netdriver/internal/names"
	"github.com/netdriver/netdriver/internal/page"
	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/internal/swarm"
	"github.com/netdriver/netdriver/internal/underlay"
	"github.com/netdriver/netdriver/ipam"
	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/volume"
)

const (
	// pluginSocket is the file by whose name Docker knows the plugin: -d custom-overlay.
	pluginSocket = plugin.Name + ".sock"
	// embedTimeout is what the embedded store may take to answer: its log may have to be replayed from a slow disk.
	embedTimeout = time.Minute
)

// serve is the daemon, until ctx ends. It begins anew when the node's part in its cluster has changed: the store is
// another one then, and the kernel's networks stay as they are meanwhile.
func serve(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	lock, err := lockRunDir(cfg.RunDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	defer stopping(log)
	if err := saveSettings(cfg); err != nil {
		return err
	}
	for {
		err := serveOnce(ctx, cfg, log)
		if !errors.Is(err, cluster.ErrAgain) || ctx.Err() != nil {
			return err
		}
		log.Info("netdriver begins anew with another store")
	}
}

// serveOnce does so with one store. What can be wrong on this host is found out before anything is served; a store
// elsewhere may be away. It ends without error when ctx ends, and leaves the kernel's networks in place.
func serveOnce(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	id, err := nodeID(cfg.DataDir)
	if err != nil {
		return err
	}
	under, err := findUnderlay(cfg.Underlay, log)
	if err != nil {
		return err
	}
	node := store.Node{
		Name: cfg.Node, ID: id, VTEP: under.VTEP, UnderlayMTU: under.MTU, Encap: cfg.ESPInUDP, Version: version(),
		Started: time.Now().UTC(),
	}
	truth, err := openTruth(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer truth.close(log)
	identity, err := openIdentity(cfg, truth.state, &node)
	if err != nil {
		return err
	}
	encrypts := openXFRM(log)
	defer encrypts.Close()
	booted := !dataplane.Exists(cfg.RunDir)
	kernel, err := dataplane.OpenLinux(dataplane.LinuxConfig{RunDir: cfg.RunDir, Log: log})
	if err != nil {
		return err
	}
	defer kernel.Close()
	host, err := lan.OpenLinux("")
	if err != nil {
		return err
	}
	defer host.Close()
	filter := openFilter(ctx, log)
	defer filter.close()
	parts, err := assemble(cfg, site{node, under.Device, booted, filter, encrypts, identity}, truth, kernels{kernel, host}, log)
	if err != nil {
		return err
	}
	log.Info(
		"netdriver starts",
		"version", node.Version, "node", node.Name, "vtep", node.VTEP, "underlay", under.Device, "mtu", under.MTU,
	)
	err = runAll(ctx, parts)
	log.Info("netdriver ends; networks and containers stay")
	return err
}

func findUnderlay(want string, log *slog.Logger) (underlay.Underlay, error) {
	host, err := underlay.Read()
	if err != nil {
		return underlay.Underlay{}, err
	}
	u, err := host.Choose(want)
	if u.Warning != "" {
		log.Warn(u.Warning)
	}
	return u, err
}

// part is something that runs until its context ends.
type part struct {
	name string
	run  func(context.Context) error
}

// runAll runs all parts. The first one that fails ends the others.
func runAll(ctx context.Context, parts []part) error {
	g, running := errgroup.WithContext(ctx)
	for _, p := range parts {
		g.Go(func() error {
			if err := p.run(running); err != nil && running.Err() == nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// site is where the daemon runs.
type site struct {
	node store.Node
	// device has node.VTEP.
	device string
	// booted: the host has booted since a daemon last ran here.
	booted bool
	filter hostFilter
	// ipsec is the kernel's, identity what this node signs with.
	ipsec    ipsec.Kernel
	identity keying.Identity
}

// kernels are what the data planes change.
type kernels struct {
	overlays dataplane.Kernel
	host     lan.Kernel
}

// assemble makes the daemon's parts of one another.
func assemble(
	cfg config.Config, at site, truth *truth, kernel kernels, log *slog.Logger,
) ([]part, error) {
	s, node := truth.client, at.node
	mirror := store.NewMirror(s, log)
	plane, hostPlane := dataplane.NewPlane(kernel.overlays, log), lan.NewPlane(kernel.host, log)
	keeper := keys(s, at, plane, log)
	ring := newChronicle(cfg.DataDir, log)
	plane.OnRepair(ring.repaired)
	hostPlane.OnRepair(ring.repaired)
	at.filter.onRepair(func(did []string, failed error) { ring.repaired("", did, failed) })
	meter := metrics.New(metrics.Sources{
		Store: s, Mirror: mirror, Plane: plane, LAN: hostPlane, Filter: at.filter.forMetrics(), Encryption: keeper, Node: node.Name,
		Version: node.Version,
	})
	observe := func(method string, err error, took time.Duration) {
		meter.ObserveCall(method, err, took)
		ring.called(method, err)
	}
	var d *driver.Driver
	leases := ipam.New(ipam.Config{
		Store: s, Node: node.Name, Routes: ipam.HostRoutes, Connected: ipam.HostSubnets, Log: log, Now: time.Now,
		Vet: func(ctx context.Context, subnet netip.Prefix, a netip.Addr) error { return d.Vet(ctx, subnet, a) },
	})
	docker, err := openDocker(cfg.DockerHost)
	if err != nil {
		return nil, err
	}
	d = driver.New(driver.Config{
		Store: s, Mirror: mirror, Plane: plane, Node: node, Underlay: at.device, Booted: at.booted, Port: cfg.VXLANPort, Docker: docker,
		EncryptedPort: cfg.EncryptedPort, Encryption: keeper, Leases: leases, Filter: at.filter.forDriver(),
		Allow: at.filter.forPassage(),
		LAN:   hostPlane, Parents: cfg.Parents, Routes: ipam.HostRoutes,
		Log: log, Observe: meter.ObserveReconciliation,
	})
	joined := cluster.New(cluster.Config{
		DataDir: cfg.DataDir, Node: node, Client: truth.client, State: truth.state, External: external(cfg), Log: log,
	})
	sources := diag.Sources{Store: s, Mirror: mirror, Plane: plane, LAN: hostPlane, Driver: d, Node: node,
		Filter: at.filter.forDiag(), Unfiltered: at.filter.lack, Encryption: keeper,
		Unheard: func() string { return *ring.unheard.Load() }}
	asked := sight(&sources, cfg, truth, docker, ring, log)
	diagnosis := diag.New(sources)
	doors := plugin.New(plugin.Config{
		Methods: slices.Concat(plugin.Constants(network.LocalScope), d.Methods(), leases.Methods()),
		Log:     log, Observe: observe,
	})
	managed := plugin.New(plugin.Config{
		Methods: slices.Concat(plugin.Constants(network.GlobalScope), d.SwarmMethods(), leases.Methods()),
		Log:     log, Observe: observe,
	})
	parts := []part{
		{"store", truth.run},
		{"cluster", joined.Run},
		{"mirror", mirror.Run},
		{"data plane", plane.Run},
		{"ipam", leases.Run},
		{"host's networks", hostPlane.Run},
		{"keys", keeper.Run},
		{"driver", d.Run},
		{"local socket", func(ctx context.Context) error {
			local := control.NewServer(diagnosis, log)
			local.Handle("/v1/cluster/", joined.Handler())
			local.Handle("POST /v1/repair/{name}", handleRepair(d))
			local.Handle("POST /v1/ipam/check", handleLeaks(s))
			return local.Serve(ctx, control.SocketPath(cfg.RunDir))
		}},
		{"plugin", func(ctx context.Context) error { return doors.Serve(ctx, filepath.Join(cfg.SocketDir, pluginSocket)) }},
		{"swarm socket", func(ctx context.Context) error {
			return managed.Serve(ctx, filepath.Join(cfg.RunDir, plugin.SwarmSocket))
		}},
		{"systemd", func(ctx context.Context) error {
			return announce(ctx, control.SocketPath(cfg.RunDir), filepath.Join(cfg.SocketDir, pluginSocket),
				filepath.Join(cfg.RunDir, plugin.SwarmSocket))
		}},
	}
	served, err := volumes(cfg, s, docker, observe, log)
	if err != nil {
		return nil, err
	}
	parts = append(append(append(parts, served...), at.filter.parts()...), asked...)
	if docker != nil {
		services := swarm.New(swarm.Config{Store: s, Mirror: mirror, Docker: docker, Log: log})
		called := names.New(names.Config{
			Store: s, Mirror: mirror, Docker: docker, Node: node.Name, Balances: plane.Balances, Log: log,
		})
		parts = append(parts, part{"services of the swarm", services.Run}, part{"names", called.Run})
	}
	parts = append(parts, refusals(plane, mirror, s, node, ring, log))
	if cfg.Metrics != "" {
		parts = append(parts, part{"metrics", func(ctx context.Context) error { return meter.Serve(ctx, cfg.Metrics, log) }})
	}
	if cfg.UI != "" {
		parts = append(parts, part{"page", (&page.Server{
			Address: cfg.UI, Cert: cfg.UICert, Key: cfg.UIKey, CA: cfg.UICA, Reports: control.NewServer(diagnosis, log), Log: log,
		}).Run})
	}
	return parts, nil
}

// docker is what parts of the daemon ask the engine.
type docker interface {
	Alive(ctx context.Context) error
	driver.Docker
	swarm.Docker
	names.Docker
	volume.Docker
}

// openDocker returns the engine at host, or nil if it is not to be asked.
func openDocker(host string) (docker, error) {
	if host == "" {
		return nil, nil
	}
	return engine.Open(host)
}
