//go:build e2e && virtual

package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// What the machine's kernel lacks: its own CephFS client, an NFS server in the kernel, and NFS volumes in containers.
func TestVirtualNodesUseVolumesByTheirKernels(t *testing.T) {
	c := bareCluster(t, lab.DefaultMemory)
	hosts := bareHosts(c.Nodes)
	ganesha := newGanesha(t, c.Lab, 242)
	t.Run("nfsd", func(t *testing.T) { nfsdScenario(t, c.Nodes[1], hosts[0], ganesha) })
	t.Run("cephfs", func(t *testing.T) {
		k := cephKind(newCeph(t, c.Lab, 241))
		t.Run("kernel", func(t *testing.T) {
			makeVolume(t, hosts[0], "by-kernel", k.options()...)
			held := hosts[0].hold(t, "by-kernel", "sleep 1000")
			says(t, hosts[0].inspect(t, "by-kernel"), `"mounted":"CephFS"`)
			held.end(t)
		})
		k.scenario(t, hosts)
	})
	t.Run("containers", func(t *testing.T) { guideScenario(t, c, ganesha) })
}

// guideScenario is the guide's way: `docker volume create` with the options of Docker's own NFS volumes, a service whose task
// writes on one node and moves to the other, and containers while the server is frozen.
func guideScenario(t *testing.T, c *cluster, s *fileServer) {
	// A swarm's dockerd has no --live-restore.
	if err := errors.Join(c.StartDocker(t.Context()), c.StartSwarm(t.Context(), managedDriver)); err != nil {
		t.Fatal(err)
	}
	containers := dockerHosts(c.Nodes)
	run(t, c.Nodes[0], "docker", "volume", "create", "-d", "custom-volume",
		"-o", "type=nfs", "-o", "o=addr="+s.addr+",rw", "-o", "device=:/share", "nfs-data")
	atEndRun(t, c.Nodes[0], "netdriver", "volume", "rm", "nfs-data")
	t.Run("service", func(t *testing.T) {
		serviceMoves(t, c.Nodes, "nfs-data")
		says(t, run(t, c.Nodes[1], "netdriver", "volume", "inspect", "nfs-data"), s.addr, "on node n2")
	})
	t.Run("frozen", func(t *testing.T) {
		defer watch(t, containers)()
		makeVolume(t, containers[0], "nfs-data-other")
		uses(t, containers[0], "nfs-data", "echo kept >/data/f")
		k := &volumeKind{
			fileServer: s, name: "nfs-data", options: func(...string) []string { return nfsOptions(s.addr, "/share") },
			ready: func() { s.listens(2049) },
		}
		if err := k.reads(t, containers[1]); err != nil {
			t.Fatal(err)
		}
		k.outage(t, containers, s.freeze, s.thaw)
	})
}

// exportAll are the exports of a kernel's NFS server: version 4 finds them below the one with fsid=0, version 3 by their paths.
const exportAll = `set -e
exportfs -i -o rw,no_subtree_check,no_root_squash,fsid=0 '*:/run/nfs'
exportfs -i -o rw,no_subtree_check,no_root_squash,fsid=11 '*:/run/nfs/share'
exportfs -i -o rw,no_subtree_check,root_squash,fsid=12 '*:/run/nfs/squash'
`

// nfsdScenario: the kernel's NFS server on one virtual node, a user on the other, and another server beside them.
func nfsdScenario(t *testing.T, server *lab.Node, user volumeHost, other *fileServer) {
	const start = `set -e
mkdir -p /run/nfs /var/lib/nfs
mount -t tmpfs tmpfs /run/nfs
mkdir /run/nfs/share /run/nfs/squash
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
modprobe nfsd
mount -t nfsd nfsd /proc/fs/nfsd || true
echo 10 >/proc/fs/nfsd/nfsv4gracetime
rpcbind || true
`
	run(t, server, "sh", "-c", start+exportAll+"rpc.mountd --port 20048; rpc.nfsd 4")
	addr := server.Addr.String()
	atEndRun(t, server, "rpc.nfsd", "0")
	three := func(name string) []string { return nfsOptions(addr, "/run/nfs/"+name, "vers=3") }
	for version, path := range map[string]string{"3": "/run/nfs/share", "4.0": "/share", "4.1": "/share", "4.2": "/share"} {
		t.Run("v"+version, func(t *testing.T) {
			name := "nfsd-" + version
			makeVolume(t, user, name, nfsOptions(addr, path, "vers="+version)...)
			eventually(t, 30*time.Second, func() error { // the grace period of version 4
				_, err := user.use(t.Context(), name, "echo "+version+" >/data/f")
				return err
			})
			if got := run(t, server, "cat", "/run/nfs/share/f"); got != version {
				t.Errorf("the server has %q", got)
			}
		})
	}
	nfsdOutages(t, server, user, other)
	t.Run("root squashed", func(t *testing.T) {
		makeVolume(t, user, "nfsd-squashed", append(three("squash"), "subdir=made")...)
		says(t, refusal(t, user, "nfsd-squashed"), "nfs server "+addr, "root_squash")
	})
	t.Run("export removed and given back", func(t *testing.T) {
		makeVolume(t, user, "nfsd-gone", three("share")...)
		run(t, server, "exportfs", "-ua")
		says(t, refusal(t, user, "nfsd-gone"), fmt.Sprintf("the export is not allowed for this node (%s)", user.node().Addr))
		run(t, server, "sh", "-c", exportAll)
		uses(t, user, "nfsd-gone", "cat /data/f")
	})
	t.Run("read-only", func(t *testing.T) {
		makeVolume(t, user, "nfsd-ro", nfsOptions(addr, "/run/nfs/share", "vers=3", "ro")...)
		says(t, uses(t, user, "nfsd-ro", "cat /data/f; ! echo x 2>&1 >/data/x"), "Read-only file system")
	})
	// With fsid= the handle of an export's root names the export and no inode: who has it mounted finds the new directory.
	t.Run("exported directory made anew", func(t *testing.T) {
		makeVolume(t, user, "nfsd-anew", three("share")...)
		held := user.hold(t, "nfsd-anew", "sleep 1000")
		run(t, server, "sh", "-c", "rm -r /run/nfs/share; mkdir /run/nfs/share; echo new >/run/nfs/share/f; exportfs -f")
		eventually(t, 60*time.Second, func() error { // the client's caches
			got, err := user.use(t.Context(), "nfsd-anew", "cat /data/f")
			if err == nil && got != "new" {
				err = fmt.Errorf("it reads %q", got)
			}
			return err
		})
		held.end(t)
	})
}

// nfsdOutages: the kernel's server is stopped, and what it sends is dropped, while the same node uses a volume of another
// server. A kernel cannot be frozen alone.
func nfsdOutages(t *testing.T, server *lab.Node, user volumeHost, other *fileServer) {
	addr := server.Addr.String()
	k := &volumeKind{
		fileServer: &fileServer{addr: addr}, name: "nfsd",
		options: func(...string) []string { return nfsOptions(addr, "/share") }, ready: func() {},
	}
	makeVolume(t, user, k.name, k.options()...)
	makeVolume(t, user, k.name+"-other", nfsOptions(other.addr, "/share")...)
	uses(t, user, k.name, "echo kept >/data/f")
	// Both users are on one node, which has just had an answer and believes it for a second.
	at := func(script string) func() { return func() { run(t, server, "sh", "-c", script+" && sleep 2") } }
	users := []volumeHost{user, user}
	t.Run("stopped", func(t *testing.T) { k.outage(t, users, at("rpc.nfsd 0"), at("rpc.nfsd 4")) })
	drop := "blackhole " + user.node().Addr.String()
	t.Run("cut off", func(t *testing.T) { k.outage(t, users, at("ip route add "+drop), at("ip route del "+drop)) })
}
