package keying

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

// lab is a cluster of daemons with kernels of their own, on one store. It runs in a bubble of package synctest.
type lab struct {
	t     *testing.T
	mem   *store.Memory
	hosts []*host
	logs  *lockedBuffer
}

// host is one node: its kernel and its filter outlive its daemon.
type host struct {
	*lab
	node   store.Node
	kernel *ipsec.Fake
	filter *fakeFilter
	id     Identity
	life   *life
	// keys are those of all SAs that the kernel was ever given.
	keys  sync.Map
	inUse atomic.Bool
	// lacking: the kernel has no ESP.
	lacking atomic.Bool
	// ports are open for ESP-in-UDP.
	ports  sync.Map
	keying *Keying
	stop   func()
}

// life counts what a daemon does to the kernel and the store; it dies before step at. cut: the store is away for it alone, from
// step cutAt on if that is not 0.
type life struct {
	mu    sync.Mutex
	n     int
	at    int
	gone  bool
	cut   bool
	cutAt int
	open  chan struct{}
}

var errDead = errors.New("killed")

func newLife(at int) *life { return &life{at: at, open: make(chan struct{})} }

// step is an error once the daemon is dead.
func (l *life) step() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n++; l.at >= 0 && l.n > l.at {
		l.gone = true
	}
	if l.cutAt > 0 && l.n > l.cutAt {
		l.cut = true
	}
	if l.gone {
		return errDead
	}
	return nil
}

func (l *life) dead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone
}

// setCut makes the store go away, or come back, for this host.
func (l *life) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut && !cut {
		close(l.open)
		l.open = make(chan struct{})
	}
	l.cut = cut
}

// reach waits until the store is there.
func (l *life) reach(ctx context.Context) error {
	for {
		l.mu.Lock()
		cut, open := l.cut, l.open
		l.mu.Unlock()
		if !cut {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", store.ErrUnavailable, ctx.Err())
		case <-open:
		}
	}
}

// hostStore is the store as a host sees it.
type hostStore struct {
	store.Store
	life *life
}

func (s hostStore) Get(ctx context.Context, key string) (store.KV, error) {
	if err := s.life.reach(ctx); err != nil {
		return store.KV{}, err
	}
	return s.Store.Get(ctx, key)
}

func (s hostStore) Commit(ctx context.Context, conds []store.Cond, ops ...store.Op) (int64, error) {
	if err := s.life.step(); err != nil {
		return 0, err
	}
	if err := s.life.reach(ctx); err != nil {
		return 0, err
	}
	return s.Store.Commit(ctx, conds, ops...)
}

func (s hostStore) Watch(ctx context.Context, prefix string) <-chan store.Batch {
	out := make(chan store.Batch)
	go func() {
		defer close(out)
		for b := range s.Store.Watch(ctx, prefix) {
			if s.life.reach(ctx) != nil {
				return
			}
			select {
			case out <- b:
			case <-ctx.Done():
			}
		}
	}()
	return out
}

// hostKernel is a kernel whose modules may be missing for some time.
type hostKernel struct {
	*ipsec.Fake
	lacking *atomic.Bool
}

func (k hostKernel) Supports(ctx context.Context) ([]ipsec.Cipher, error) {
	if k.lacking.Load() {
		return nil, fmt.Errorf("%w: ESP is missing", ipsec.ErrUnsupported)
	}
	return k.Fake.Supports(ctx)
}

type closer func()

func (c closer) Close() error { c(); return nil }

// fakeFilter is a packet filter in memory.
type fakeFilter struct {
	life   func() *life
	mu     sync.Mutex
	port   uint16
	broken error
}

func (f *fakeFilter) Apply(_ context.Context, port uint16) error {
	if err := f.life().step(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken == nil {
		f.port = port
	}
	return f.broken
}

func (f *fakeFilter) Problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken
}

func (f *fakeFilter) has() uint16 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.port
}

func (f *fakeFilter) Drops(context.Context) (in, out uint64, err error) { return 3, 4, nil }

// lockedBuffer is where all daemons log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

const testPort uint16 = 4790

// newLab starts n nodes in one encrypted network.
func newLab(t *testing.T, n int, rekey time.Duration) *lab {
	t.Helper()
	l := &lab{t: t, mem: store.NewMemory(), logs: &lockedBuffer{}}
	for i := range n {
		l.add(i)
	}
	l.network("web", rekey, l.hosts...)
	for _, h := range l.hosts {
		h.start(-1)
		if err := h.keying.Guard(t.Context(), testPort); err != nil { // as the driver does before it makes a device
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, h := range l.hosts {
			h.stop()
		}
	})
	return l
}

// add makes a node, without its daemon.
func (l *lab) add(i int) *host {
	l.t.Helper()
	id, err := OpenPinned(l.t.TempDir(), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	key, err := id.Public()
	if err != nil {
		l.t.Fatal(err)
	}
	h := &host{lab: l, kernel: ipsec.NewFake(), id: id, stop: func() {}, node: store.Node{
		Name: fmt.Sprintf("n%02d", i), ID: fmt.Sprintf("id%d", i), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), UnderlayMTU: 1500,
		Key: key,
	}}
	h.filter = &fakeFilter{life: func() *life { return h.life }}
	h.kernel.FailOn = func(o ipsec.Op) error {
		if o.Verb == ipsec.AddSA {
			h.keys.Store(o.SA.ID(), o.SA.Key)
		}
		return h.life.step()
	}
	l.hosts = append(l.hosts, h)
	l.put(store.Put(store.NodeKey(h.node.Name), store.Encode(h.node)))
	return h
}

func (l *lab) put(ops ...store.Op) {
	l.t.Helper()
	if _, err := l.mem.Commit(l.t.Context(), nil, ops...); err != nil {
		l.t.Fatal(err)
	}
}

// network writes an encrypted network of some hosts.
func (l *lab) network(name string, rekey time.Duration, members ...*host) {
	l.t.Helper()
	nw := store.Network{
		Name: name, Mode: store.ModeOverlay, VNI: 7, Port: testPort, MTU: 1416, Encrypted: true, Rekey: rekey,
	}
	for _, h := range members {
		nw.Members = append(nw.Members, store.Member{Node: h.node.Name, DockerID: "d"})
		h.inUse.Store(true)
	}
	l.put(store.Put(store.NetworkKey(name), store.Encode(nw)))
}

// start starts a daemon that dies before its step at; never if at is negative.
func (h *host) start(at int) {
	h.life = newLife(at)
	log := slog.New(slog.NewTextHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.ports.Clear()
	h.keying = New(Config{
		Encap: func(port uint16) (io.Closer, error) {
			h.ports.Store(port, true)
			return closer(func() { h.ports.Delete(port) }), nil
		},
		Store: hostStore{h.mem, h.life}, Kernel: hostKernel{h.kernel, &h.lacking}, Filter: h.filter, Identity: h.id, Node: h.node,
		InUse: func(context.Context, uint16) (bool, error) { return h.inUse.Load(), nil }, Log: log.With("node", h.node.Name),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := h.keying.Run(ctx); err != nil {
			h.t.Errorf("%s: %v", h.node.Name, err)
		}
	}()
	h.stop = func() {
		cancel()
		<-done
		h.stop = func() {}
	}
}

// open are the ports that are open for ESP-in-UDP.
func (h *host) open() (ports []uint16) {
	h.ports.Range(func(port, _ any) bool { ports = append(ports, port.(uint16)); return true })
	return ports
}

// state is what the host's kernel has, with the keys.
func (h *host) state() ipsec.State {
	have, _ := h.kernel.Read(context.Background())
	for i := range have.SAs {
		if key, ok := h.keys.Load(have.SAs[i].ID()); ok {
			have.SAs[i].Key = key.(ipsec.Key)
		}
	}
	return have
}

// arrives sends a packet in thought: it says why it does not arrive.
func arrives(from, to *host) error { return passes(from, to, from.state(), to.state()) }

func passes(from, to *host, a, b ipsec.State) error {
	var out *ipsec.Policy
	for _, p := range a.Policies {
		if p.Dir == ipsec.Out && p.Dst.Contains(to.node.VTEP) && (out == nil || p.Priority < out.Priority) {
			out = &p
		}
	}
	switch {
	case out == nil:
		return errClear
	case out.Block:
		return errBlocked
	}
	id := ipsec.SAID{Dst: to.node.VTEP, SPI: out.SPI}
	sent, received := find(a, id), find(b, id)
	switch {
	case sent == nil:
		return errors.New("the sender's policy has no SA")
	case received == nil:
		return fmt.Errorf("the receiver has no SA %#x", out.SPI)
	case !bytes.Equal(sent.Key.Bytes(), received.Key.Bytes()) || sent.Key.IsZero():
		return fmt.Errorf("the keys of SA %#x differ", out.SPI)
	}
	return nil
}

var (
	errClear   = errors.New("it leaves in clear")
	errBlocked = errors.New("it is blocked")
)

func find(s ipsec.State, id ipsec.SAID) *ipsec.SA {
	for _, a := range s.SAs {
		if a.ID() == id {
			return &a
		}
	}
	return nil
}

// pairs sends a packet between each ordered pair of hosts.
func (l *lab) pairs(f func(from, to *host, err error)) {
	// Daemons go on meanwhile: a packet leaves before it arrives.
	sending, receiving := map[*host]ipsec.State{}, map[*host]ipsec.State{}
	for _, states := range []map[*host]ipsec.State{sending, receiving} {
		for _, h := range l.hosts {
			states[h] = h.state()
		}
	}
	for _, from := range l.hosts {
		for _, to := range l.hosts {
			if from != to {
				f(from, to, passes(from, to, sending[from], receiving[to]))
			}
		}
	}
}

// connected waits until all pairs are.
func (l *lab) connected(within time.Duration) {
	l.t.Helper()
	var err error
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		err = nil
		l.pairs(func(from, to *host, e error) {
			if e != nil {
				err = fmt.Errorf("%s to %s: %w", from.node.Name, to.node.Name, e)
			}
		})
		if err == nil {
			return
		}
	}
	l.t.Fatalf("not connected within %s: %v\n%s", within, err, l.logs)
}

// watch sends a packet between all pairs every 20 ms for some time; tolerate says which loss is right.
func (l *lab) watch(d time.Duration, tolerate func(error) bool) {
	l.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		l.pairs(func(from, to *host, err error) {
			if err != nil && !tolerate(err) {
				l.t.Fatalf("%s to %s: %v\n%s", from.node.Name, to.node.Name, err, l.logs)
			}
		})
	}
}

func nothing(error) bool      { return false }
func blocking(err error) bool { return errors.Is(err, errBlocked) }
