package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// nfsServer is the configuration of the NFS server that volumes are mounted from.
const nfsServer = `NFS_CORE_PARAM { Protocols = 4; Bind_addr = ADDR; Enable_NLM = false; Enable_RQUOTA = false; }
NFSv4 { Minor_Versions = 1,2; Graceless = true; RecoveryRoot = DIR/recovery; }
EXPORT { Export_Id = 1; Path = DIR/share; Pseudo = /share; Protocols = 4; Transports = TCP; Squash = No_Root_Squash; SecType = sys;
  Access_Type = RW; FSAL { Name = VFS; } }
`

// volumeSocket is where a node's netdriver answers Docker's calls for volumes.
const volumeSocket = "/run/docker/plugins/custom-volume.sock"

// mounting measures an NFS volume against a plain mount, on a virtual node: the machine's kernel may have no NFS.
func mounting(ctx context.Context, b *bench) (results []Result, err error) {
	l, err := lab.New(ctx, lab.Config{Nodes: 1, Virtual: true, Binary: b.binary})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	m := &nfsBench{
		node: l.Nodes[0], server: l.Outside, addr: l.Outside.Addr.String(), dir: filepath.Join(l.Dir, "nfs"),
		rounds: min(b.rounds, 9),
	}
	if err := m.serve(ctx); err != nil {
		return nil, err
	}
	if err := m.node.StartDaemon(ctx, lab.DaemonConfig{}); err != nil {
		return nil, err
	}
	options := map[string]string{"type": "nfs", "o": "addr=" + m.addr + ",vers=4.2", "device": ":/share"}
	if _, err := m.call(ctx, "Create", map[string]any{"Name": "data", "Opts": options}); err != nil {
		return nil, err
	}
	for _, measure := range []func(context.Context) ([]Result, error){m.mounts, m.transfers} {
		got, err := measure(ctx)
		results = append(results, got...)
		if err != nil {
			return results, err
		}
	}
	return results, nil
}

type nfsBench struct {
	node, server *lab.Node
	addr, dir    string
	rounds       int
}

// serve starts the NFS server, which ends with the lab.
func (m *nfsBench) serve(ctx context.Context) error {
	err := errors.Join(os.MkdirAll(m.dir+"/share", 0o755), os.MkdirAll(m.dir+"/recovery", 0o755))
	if err != nil {
		return err
	}
	config := filepath.Join(m.dir, "ganesha.conf")
	text := strings.NewReplacer("ADDR", m.addr, "DIR", m.dir).Replace(nfsServer)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	if _, err := m.server.Exec(ctx, "mkdir", "-p", "/run/ganesha"); err != nil {
		return err
	}
	cmd := m.server.Command(context.WithoutCancel(ctx), "ganesha.nfsd", "-F", "-f", config, "-L", m.dir+"/log", "-p", m.dir+"/pid")
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, err := m.server.Exec(ctx, "bash", "-c", `exec 3<>"/dev/tcp/$0/2049"`, m.addr)
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
	}
}

func (m *nfsBench) call(ctx context.Context, method string, request any) (path string, err error) {
	answer, err := m.node.Call(ctx, volumeSocket, "VolumeDriver."+method, request)
	var mounted struct{ Mountpoint string }
	if err == nil {
		err = json.Unmarshal(answer, &mounted)
	}
	return mounted.Mountpoint, err
}

// plain is where the same export is mounted without us.
const plain = "/run/plain"

// mounts measures how long a mount takes.
func (m *nfsBench) mounts(ctx context.Context) ([]Result, error) {
	user := map[string]string{"Name": "data", "ID": "bench"}
	source := m.addr + ":/share"
	if _, err := m.node.Exec(ctx, "mkdir", "-p", plain); err != nil {
		return nil, err
	}
	var ours, theirs sample
	for i := range m.rounds + 1 {
		begin := time.Now()
		if _, err := m.call(ctx, "Mount", user); err != nil {
			return nil, err
		}
		a := time.Since(begin)
		if _, err := m.call(ctx, "Unmount", user); err != nil {
			return nil, err
		}
		begin = time.Now()
		if _, err := m.node.Exec(ctx, "mount.nfs", source, plain, "-o", "vers=4.2"); err != nil {
			return nil, err
		}
		b := time.Since(begin)
		if _, err := m.node.Exec(ctx, "umount", plain); err != nil {
			return nil, err
		}
		if i > 0 { // the first loads modules and starts a child
			ours, theirs = append(ours, float64(a.Milliseconds())), append(theirs, float64(b.Milliseconds()))
		}
	}
	r, err := ratioResult("an NFS volume mounted, time ÷ that of `mount.nfs`, both as their caller sees it", ours, theirs, "ms", 1.2)
	return []Result{r}, err
}

// transfers measures reading and writing.
func (m *nfsBench) transfers(ctx context.Context) (results []Result, err error) {
	path, err := m.call(ctx, "Mount", map[string]string{"Name": "data", "ID": "bench"})
	if err != nil {
		return nil, err
	}
	// nosharecache: otherwise both would be one file system in the kernel, with one cache.
	if _, err := m.node.Exec(ctx, "mount.nfs", m.addr+":/share", plain, "-o", "vers=4.2,nosharecache"); err != nil {
		return nil, err
	}
	for _, x := range []struct{ what, script string }{
		{"64 MiB written through an NFS volume, and on the server, time ÷ that by a plain mount",
			`dd if=/dev/zero of="$0/file" bs=1M count=64 conv=fsync 2>/dev/null`},
		{"64 MiB read through an NFS volume, time ÷ that by a plain mount",
			`echo 3 >/proc/sys/vm/drop_caches; dd if="$0/file" of=/dev/null bs=1M 2>/dev/null`},
	} {
		var samples [2]sample
		for i := range m.rounds {
			for j := range 2 {
				way := (i + j) % 2
				begin := time.Now()
				if _, err := m.node.Exec(ctx, "bash", "-c", x.script, []string{path, plain}[way]); err != nil {
					return results, fmt.Errorf("%s: %w", x.what, err)
				}
				samples[way] = append(samples[way], time.Since(begin).Seconds())
			}
		}
		// A throughput of .98 is a time of 1/.98.
		r, err := ratioResult(x.what, samples[0], samples[1], "s", 1.02)
		if err != nil {
			return results, err
		}
		results = append(results, r)
	}
	return results, nil
}
