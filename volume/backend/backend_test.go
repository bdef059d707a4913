package backend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/volume/mount"
	"github.com/netdriver/netdriver/volume/option"
)

// rpcServer answers null calls with the words after the reply's verifier; with none it takes connections and is silent. It
// returns its port.
func rpcServer(t *testing.T, words ...uint32) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			call := make([]byte, 44)
			if _, err := io.ReadFull(conn, call); err != nil || len(words) == 0 {
				continue
			}
			reply := []uint32{lastFragment | uint32(4*(5+len(words))), binary.BigEndian.Uint32(call[4:]), rpcReply, rpcAccepted, 0, 0}
			var out []byte
			for _, w := range append(reply, words...) {
				out = binary.BigEndian.AppendUint32(out, w)
			}
			_, _ = conn.Write(out)
		}
	}()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// prepare makes the plan of a volume, or the explained error.
func prepare(t *testing.T, h Host, options map[string]string) (mount.Plan, error) {
	t.Helper()
	spec, err := option.Parse(options)
	if err != nil {
		t.Fatal(err)
	}
	v, explain := h.Volume("v", spec)
	p, err := v.Prepare(t.Context())
	return p, explain(err)
}

func nfs(o string) map[string]string {
	return map[string]string{"type": "nfs", "o": o, "device": ":/share"}
}

func labels(p mount.Plan) (out []string) {
	for _, a := range p.Attempts {
		out = append(out, a.Label)
	}
	return out
}

func TestNFSVersionsAreTriedNewestFirstWithoutThoseThatTheServerLacks(t *testing.T) {
	all := []string{"NFS 4.2", "NFS 4.1", "NFS 4.0", "NFS 3", "NFS 3, locks of this node only"}
	for name, c := range map[string]struct {
		answer []uint32
		o      string
		want   []string
	}{
		"speaks 4":      {[]uint32{rpcSuccess}, "", all},
		"speaks 3 only": {[]uint32{rpcProgMismatch, 2, 3}, "", all[3:]},
		"4.1 is wanted": {[]uint32{rpcSuccess}, ",vers=4.1", all[1:2]},
		"no locks":      {[]uint32{rpcSuccess}, ",vers=3,nolock", all[3:4]},
	} {
		p, err := prepare(t, Host{}, nfs("addr=127.0.0.1,port="+rpcServer(t, c.answer...)+c.o))
		if diff := cmp.Diff(c.want, labels(p)); err != nil || diff != "" {
			t.Errorf("%s: error %v (-want +got):\n%s", name, err, diff)
		}
	}
}

func TestTheKernelGetsAnAddressAndTheTableOfMountsTheName(t *testing.T) {
	port := rpcServer(t, rpcSuccess)
	h := Host{Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")}, nil
	}}
	p, err := prepare(t, h, nfs("addr=nas.example.com,ro,timeo=50,vers=4.2,port="+port))
	want := mount.Attempt{
		Label: "NFS 4.2", Source: "nas.example.com:/share", FSType: "nfs4", Flags: unix.MS_RDONLY,
		Data: "port=" + port + ",timeo=50,addr=127.0.0.1,vers=4.2",
	}
	if err != nil || len(p.Attempts) != 1 {
		t.Fatalf("attempts %v, error %v", p.Attempts, err)
	}
	if diff := cmp.Diff(want, p.Attempts[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAServerThatTakesConnectionsAndIsSilentIsFoundOutBeforeTheMount(t *testing.T) {
	start := time.Now()
	_, err := prepare(t, Host{}, nfs("addr=127.0.0.1,port="+rpcServer(t)))
	var f *Failure
	if took := time.Since(start); !errors.As(err, &f) || f.Cause != "it does not answer" || took > preflight+time.Second {
		t.Errorf("error %v after %s", err, took)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error("the breaker would not know it as silence")
	}
}

func TestWhatIsNoNFSServerIsToldFromOneOfAnotherVersion(t *testing.T) {
	for want, words := range map[string][]uint32{
		"what listens there is no NFS server":             {1}, // PROG_UNAVAIL
		"it speaks NFS 2 to 3, and version 4.2 is wanted": {rpcProgMismatch, 2, 3},
	} {
		_, err := prepare(t, Host{}, nfs("addr=127.0.0.1,vers=4.2,port="+rpcServer(t, words...)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestTheNextAddressOfAServerIsTriedWhenOneIsDead(t *testing.T) {
	port := rpcServer(t, rpcSuccess)
	h := Host{
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")}, nil
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasPrefix(address, "192.0.2.1") { // packets are dropped
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	p, err := prepare(t, h, nfs("addr=nas,vers=4.2,port="+port))
	if err != nil || !strings.Contains(p.Attempts[0].Data, "addr=127.0.0.1") {
		t.Errorf("plan %v, error %v", p, err)
	}
}

func TestEachRefusalOfAServerHasItsCauseAndRemedy(t *testing.T) {
	spec, err := option.Parse(nfs("addr=10.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	s := &session{spec: spec, server: netip.MustParseAddr("10.0.0.1"), client: netip.MustParseAddr("10.0.0.2")}
	for errno, want := range map[unix.Errno][]string{
		unix.EACCES:          {"the export is not allowed for this node (10.0.0.2)", "/share 10.0.0.2(rw", "exportfs -ra"},
		unix.ENOENT:          {"it exports no /share to this node (10.0.0.2)", "exportfs -v"},
		unix.ESTALE:          {"was made anew", "exportfs -ra"},
		unix.EPROTONOSUPPORT: {"none of the wanted versions (4.2, 4.1, 4.0, 3)", "leave vers="},
		unix.ECONNREFUSED:    {"not running, or not registered with its rpcbind", "mountport="},
		unix.EHOSTUNREACH:    {"no way to it", "routes"},
		unix.ENODEV:          {"no NFS client", "modprobe nfsv4"},
		unix.EINVAL:          {"refuses the options", "dmesg"},
	} {
		got := s.explain(mount.Failure{Label: "NFS 4.2", Step: "mount", Errno: errno, Text: errno.Error()}, s.explainNFS)
		for _, w := range append(want, "nfs server 10.0.0.1, path /share", errno.Error()) {
			if !strings.Contains(got.Error(), w) {
				t.Errorf("%v: %q lacks %q", errno, got, w)
			}
		}
		if !errors.Is(got, errno) {
			t.Errorf("%v is lost", errno)
		}
	}
	squash := mount.Failure{Step: "make subdir web", Errno: unix.EACCES, Text: "permission denied"}
	if got := s.explain(squash, s.explainNFS); !strings.Contains(got.Error(), "root_squash") {
		t.Error(got)
	}
}

func TestAGlusterFSClientThatDiedIsToldFromAVolumeThatIsNotStarted(t *testing.T) {
	spec, err := option.Parse(map[string]string{"volume": "gv0", "servers": "10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	s := &session{spec: spec}
	gone := mount.Failure{Step: "statfs", Errno: unix.ENOTCONN, Text: "transport endpoint is not connected"}
	for want, err := range map[string]error{
		"no started volume gv0":                    gone, // at the end of a mount
		"its client process on this node has died": fmt.Errorf("%w: %w", mount.ErrStale, gone),
	} {
		if got := s.explain(err, s.explainGluster).Error(); !strings.Contains(got, want) {
			t.Errorf("%v: %q lacks %q", err, got, want)
		}
	}
}

func TestVolumesOfOneServerShareALaneAndOthersDoNot(t *testing.T) {
	server := func(options map[string]string) string {
		spec, err := option.Parse(options)
		if err != nil {
			t.Fatal(err)
		}
		return Server("v", spec)
	}
	a, b := server(nfs("addr=10.0.0.1")), server(map[string]string{"type": "nfs", "o": "addr=10.0.0.1", "device": ":/other"})
	c := server(nfs("addr=10.0.0.2"))
	if a != b || a == c {
		t.Errorf("lanes %q, %q, %q", a, b, c)
	}
}

func FuzzAnswersOfServers(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, replyHeader))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if len(reply) < replyHeader {
			return // never handed on
		}
		if _, _, err := versions(reply); err != nil && !errors.Is(err, errNoNFS) {
			t.Error(err)
		}
	})
}
