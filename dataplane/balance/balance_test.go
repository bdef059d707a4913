//go:build linux

package balance

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/vxlan"
)

func tasks(n int) (out []Target) {
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		out = append(out, Target{a, vxlan.MACFor(a)})
	}
	return out
}

// table makes a service's table, in which backend i has the number i+1.
func table(backends []Target, ids ...uint32) (t [slots]uint32) {
	if ids == nil {
		for i := range backends {
			ids = append(ids, uint32(i+1))
		}
	}
	fill(&t, backends, ids)
	return t
}

func TestEveryBackendHasTheSameShareOfATable(t *testing.T) {
	for _, n := range []int{1, 2, 3, 30, 100, slots, slots + 50} {
		share := map[uint32]int{}
		for _, id := range table(tasks(n)) {
			share[id]++
		}
		n = min(n, slots)
		for i := range n {
			if got := share[uint32(i+1)]; got < slots/n || got > slots/n+1 {
				t.Errorf("of %d backends number %d has %d of %d slots", n, i, got, slots)
			}
		}
	}
	if table(nil) != [slots]uint32{} {
		t.Error("a table without backends is not empty")
	}
}

// TestABackendThatGoesMovesFewFlowsOfOthers: those that are open stay anyway, this is about clients that come again.
func TestABackendThatGoesMovesFewFlowsOfOthers(t *testing.T) {
	for _, n := range []int{3, 10, 30} {
		all := tasks(n)
		before := table(all)
		ids := make([]uint32, n-1)
		for i := range ids {
			ids[i] = uint32(i + 2)
		}
		moved := 0
		for i, id := range table(all[1:], ids...) {
			if before[i] != 1 && before[i] != id {
				moved++
			}
		}
		if moved > slots/8 {
			t.Errorf("of %d backends one goes: %d of %d slots of others move", n, moved, slots)
		}
	}
}

func TestLayoutsAreThoseOfTheProgram(t *testing.T) {
	spec, err := specification()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][2]int{
		vipsMap:     {16, binary.Size(vipValue{})},
		backendsMap: {4, binary.Size(backendValue{})},
		countsMap:   {4, binary.Size(countValue{})},
		tcpFlowsMap: {binary.Size(tuple{}), binary.Size(flowValue{})},
		udpFlowsMap: {binary.Size(tuple{}), binary.Size(flowValue{})},
	}
	for name, size := range want {
		if m := spec.Maps[name]; m == nil || int(m.KeySize) != size[0] || int(m.ValueSize) != size[1] {
			t.Errorf("map %s is %+v, want keys of %d and values of %d bytes", name, m, size[0], size[1])
		}
	}
	for name := range spec.Maps {
		if strings.HasPrefix(name, ".") {
			t.Errorf("the program has a section %s, whose content a new version would take over from an old one", name)
		}
	}
	if size := spec.Maps[vipsMap].ValueSize + 48 + 16 + 8; size > 4096 { // with the kernel's own fields
		t.Errorf("an entry of the virtual addresses takes %d bytes, more than a page", size)
	}
}

// TestObjectIsWhatTheSourceMakes wherever the compiler is that made it.
func TestObjectIsWhatTheSourceMakes(t *testing.T) {
	version, err := exec.Command("clang", "--version").Output()
	if err != nil || !strings.Contains(string(version), "clang version 14.0.6") {
		t.Fatalf("the object is compared with what clang 14.0.6 makes, Debian 12's (make deps): %s, %v", version, err)
	}
	out := filepath.Join(t.TempDir(), "balance.o")
	if b, err := exec.Command("../../script/generate", out).CombinedOutput(); err != nil {
		t.Fatalf("script/generate: %v\n%s", err, b)
	}
	made, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(made, object) {
		t.Error("balance.o is not what bpf/ makes; run make generate")
	}
}

// inNamespace runs f in a network namespace of its own, where the loopback device has index 1.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			err = unix.Unshare(unix.CLONE_NEWNET)
		}
		if err == nil {
			f()
			err = unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
			home.Close()
		}
		if err == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

const lo = 1

// another returns the specification of another version of the program.
func another(t *testing.T) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := specification()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range spec.Programs {
		first := asm.Mov.Imm(asm.R0, 7)
		first.Metadata, p.Instructions[0].Metadata = p.Instructions[0].Metadata, asm.Metadata{}
		p.Instructions = append(asm.Instructions{first}, p.Instructions...)
	}
	return spec
}

// TestAnotherVersionTakesOverTheFlows of the daemon that was there before, on its device and without a gap.
func TestAnotherVersionTakesOverTheFlows(t *testing.T) {
	inNamespace(t, func() {
		old := must(load(another(t), nil))
		task := tasks(1)[0]
		check(t, old.PutBackend(Backend{Service: "web", Address: task.Address, MAC: task.MAC}))
		check(t, old.PutVIP(VIP{netip.MustParseAddr("10.9.9.9"), "web", []Target{task}, false}))
		flow := tuple{ClientPort: [2]byte{1, 2}}
		check(t, old.maps[tcpFlowsMap].Put(&flow, &flowValue{Backend: old.ids[backendKey{"web", task}]}))
		check(t, old.Attach(lo))
		former := must(old.Programs(lo))
		check(t, old.Close())

		s := must(Adopt(lo))
		if s == nil {
			t.Error("nothing was taken over")
			return
		}
		if on := must(s.Attached(lo)); on {
			t.Error("another version's programs count as this one's")
		}
		check(t, s.Attach(lo))
		if on := must(s.Attached(lo)); !on {
			t.Error("the programs are not there")
		}
		if now := must(s.Programs(lo)); len(now) != 2 || slices.Contains(now, former[0]) || slices.Contains(now, former[1]) {
			t.Errorf("programs %v became %v", former, now)
		}
		vips, backends, err := s.Read()
		if err != nil || len(vips) != 1 || len(backends) != 1 || vips[0].Broken {
			t.Errorf("%v, read %+v %+v", err, vips, backends)
		}
		flows := must(s.Flows())
		if len(flows) != 1 || flows[0].Client.Port() != 258 || flows[0].Backend != task {
			t.Errorf("flows %+v", flows)
		}
		check(t, s.Detach(lo))
		check(t, s.Close())
	})
}

// TestMapsOfAnotherLayoutAreNotTakenOver: their programs are replaced all the same.
func TestMapsOfAnotherLayoutAreNotTakenOver(t *testing.T) {
	inNamespace(t, func() {
		spec := another(t)
		spec.Maps["fragments"].MaxEntries /= 2
		old := must(load(spec, nil))
		check(t, old.Attach(lo))
		check(t, old.Close())
		if s := must(Adopt(lo)); s != nil {
			t.Error("maps of another size were taken over")
		}
		s := must(New())
		check(t, s.Attach(lo))
		if now := must(s.Programs(lo)); len(now) != 2 {
			t.Errorf("programs %v, want two", now)
		}
		check(t, s.Detach(lo))
		check(t, s.Close())
	})
}

// TestWhatIsTornIsBroken: a table whose backends are not what it should be is told from one that is right.
func TestWhatIsTornIsBroken(t *testing.T) {
	s := must(New())
	defer s.Close()
	address := netip.MustParseAddr("fd00::9")
	want := VIP{Address: address, Service: "web", Backends: tasks(3)}
	for _, task := range want.Backends {
		check(t, s.PutBackend(Backend{Service: "web", Address: task.Address, MAC: task.MAC}))
	}
	check(t, s.PutVIP(want))
	read := func() VIP { vips, _, err := s.Read(); check(t, err); return vips[0] }
	if diff := cmp.Diff(want, read(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	gone := want.Backends[1]
	if _, err := s.DelBackend(Backend{Service: "web", Address: gone.Address, MAC: gone.MAC}); err != nil {
		t.Error(err)
	}
	if got := read(); !got.Broken || len(got.Backends) != 2 {
		t.Errorf("with a backend gone: %+v", got)
	}
	if err := s.PutVIP(want); err == nil {
		t.Error("a table with a backend that is not there was accepted")
	}
}

func TestThisKernelBalances(t *testing.T) {
	inNamespace(t, func() {
		if err := Supported(lo); err != nil {
			t.Error(err)
		}
		s := must(New())
		defer s.Close()
		if left := must(s.Programs(lo)); len(left) > 0 {
			t.Errorf("programs %v are left", left)
		}
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("test set-up: %v", err))
	}
	return v
}
