package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/google/renameio/v2"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/capture"
	"github.com/netdriver/netdriver/internal/cluster"
	"github.com/netdriver/netdriver/internal/config"
	"github.com/netdriver/netdriver/internal/control"
	"github.com/netdriver/netdriver/internal/events"
	"github.com/netdriver/netdriver/internal/peer"
	"github.com/netdriver/netdriver/internal/plugin"
	"github.com/netdriver/netdriver/store"
)

// settingsFile is what a daemon runs with, in its run directory, for commands that look when it does not run. It has names
// of files with secrets and none of these.
func settingsFile(runDir string) string { return filepath.Join(runDir, "settings.json") }

// saveSettings leaves the settings behind.
func saveSettings(cfg config.Config) error {
	text, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(settingsFile(cfg.RunDir), text, 0o600, renameio.WithTempDir(cfg.RunDir)); err != nil {
		return fmt.Errorf("save the settings: %w", err)
	}
	return nil
}

// lastSettings returns those of the daemon that ran here last.
func lastSettings(runDir string) (cfg config.Config, err error) {
	text, err := os.ReadFile(settingsFile(runDir))
	if err == nil {
		err = json.Unmarshal(text, &cfg)
	}
	return cfg, err
}

// certificates are the files with which a node speaks to the store and to others; false if there are none.
func certificates(cfg config.Config, state *cluster.State) (peer.Files, bool) {
	if state != nil {
		f := cluster.FilesIn(cfg.DataDir)
		return peer.Files{CA: f.CA(), Cert: f.Cert(), Key: f.Key()}, true
	}
	return peer.Files{CA: cfg.StoreCA, Cert: cfg.StoreCert, Key: cfg.StoreKey}, cfg.StoreCA != "" && cfg.StoreCert != ""
}

// siteOf is what checks look at.
func siteOf(cfg config.Config, files peer.Files, certified bool) diag.Site {
	s := diag.Site{
		RunDir: cfg.RunDir, DataDir: cfg.DataDir,
		Sockets: []string{filepath.Join(cfg.SocketDir, pluginSocket), control.SocketPath(cfg.RunDir), filepath.Join(cfg.RunDir, plugin.SwarmSocket)},
	}
	if certified {
		s.Certificates = []string{files.CA, files.Cert}
		s.Ports = portsOf(cfg)
	}
	return s
}

// portsOf are the TCP ports that this node's settings name.
func portsOf(cfg config.Config) map[uint16]string {
	out := map[uint16]string{}
	for _, text := range append(slices.Clone(cfg.Store), cfg.StoreListen...) {
		u, err := url.Parse(text)
		if err != nil {
			continue // it is no URL of TCP
		}
		if n, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
			out[uint16(n)] = "which the store uses"
		}
	}
	if cfg.PeerPort != 0 {
		out[cfg.PeerPort] = "at which nodes ask each other for traces"
	}
	return out
}

// sight gives a diagnosis what it sees with, and returns the part that answers other nodes.
func sight(s *diag.Sources, cfg config.Config, truth *truth, docker docker, ring chronicle, log *slog.Logger) []part {
	files, certified := certificates(cfg, truth.state)
	s.Site = siteOf(cfg, files, certified)
	if docker != nil {
		s.Docker = docker.Alive
	}
	if !certified || cfg.PeerPort == 0 {
		return nil
	}
	s.Peers = peer.Client{Files: files, Port: cfg.PeerPort}
	records := s.Store
	server := peer.Server{
		Address: netip.AddrPortFrom(s.Node.VTEP, cfg.PeerPort), Files: files, Log: log,
		Witness: diag.Witness{Node: s.Node.Name, RunDir: cfg.RunDir},
		Traffic: func(ctx context.Context) (diag.Traffic, error) { return diag.New(*s).Traffic(ctx, "") },
		Refused: func(ctx context.Context, serial string) (bool, error) {
			const patience = 500 * time.Millisecond // traces are wanted most when the store is away
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			_, err := records.Get(ctx, store.RevokedKey(serial))
			if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrUnavailable) {
				return false, nil // without the store the authority's word counts
			}
			return err == nil, err
		},
	}
	if cfg.AnswerCaptures {
		server.Captures = &capture.Node{RunDir: cfg.RunDir}
	}
	server.Captured = func(asker string, q capture.Question) {
		ring.add(events.Event{Kind: events.Captured, Network: q.Network, Text: "node " + asker + " reads the frames of containers here (netdriver capture)"})
	}
	return []part{{"answers to other nodes", server.Run}}
}
