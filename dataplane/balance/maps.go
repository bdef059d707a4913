//go:build linux

package balance

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The layouts of bpf/maps.h.
type (
	// vipValue is struct vip.
	vipValue struct {
		Service [MaxServiceID]byte
		Slot    [slots]uint32
	}
	// backendValue is struct backend.
	backendValue struct {
		Address  [16]byte
		MAC      [6]byte
		Draining uint8
		_        uint8
		Service  [MaxServiceID]byte
	}
	// countValue is struct count.
	countValue struct{ Flows, Packets, Bytes uint64 }
	// tuple is struct tuple; ports are in network byte order.
	tuple struct {
		Client, Server         [16]byte
		ClientPort, ServerPort [2]byte
	}
	// flowValue is struct flow.
	flowValue struct {
		Backend, Seen, FIN, Device uint32
		Port                       [2]byte
		Kind, State, Tries         uint8
		MAC                        [6]byte
		_                          uint8
	}
)

func serviceBytes(id string) (b [MaxServiceID]byte) {
	copy(b[:], id)
	return b
}

func serviceID(b [MaxServiceID]byte) string { return string(bytes.TrimRight(b[:], "\x00")) }

// PutBackend adds a backend, or changes whether it is draining. New flows go to it when PutVIP says so.
func (s *Set) PutBackend(b Backend) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, known := s.ids[b.key()]
	if !known {
		id = s.unusedID()
		if err := s.startCount(id); err != nil {
			return fmt.Errorf("add counters: %w", err)
		}
	}
	v := backendValue{Address: b.Address.As16(), MAC: b.MAC, Service: serviceBytes(b.Service)}
	if b.Draining {
		v.Draining = 1
	}
	if err := put(s.maps[backendsMap], id, &v); err != nil {
		return fmt.Errorf("put the backend: %w", err)
	}
	s.ids[b.key()], s.used[id] = id, true
	return nil
}

// put writes an entry. The kernel takes the memory for it from a small stock of its own, which it fills up a moment later
// (kernel/bpf/memalloc.c): after some entries in a row there is none for that moment.
func put(m *ebpf.Map, key, value any) error {
	var err error
	for pause := 100 * time.Microsecond; pause < time.Second; pause *= 2 {
		if err = m.Put(key, value); !errors.Is(err, unix.ENOMEM) {
			break
		}
		time.Sleep(pause)
	}
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: a network has room for 8,192 virtual addresses and 16,384 backends", err)
	}
	return err
}

// unusedID draws an id. A flow whose backend is gone must not take a later one for it, across restarts of the daemon
// too, so ids are not counted: one of billions.
func (s *Set) unusedID() uint32 {
	for {
		id := rand.Uint32()
		if id != 0 && !s.used[id] {
			return id
		}
	}
}

func (s *Set) startCount(id uint32) error {
	zero := make([]countValue, ebpf.MustPossibleCPU())
	return put(s.maps[countsMap], id, zero)
}

// DelBackend removes a backend. Its open TCP connections are reset when their client sends something, and the probes that
// are returned make the clients do so; its UDP flows go to another backend. One that is not there is no error.
func (s *Set) DelBackend(b Backend) ([]Probe, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, known := s.ids[b.key()]
	if !known {
		return nil, nil
	}
	delete(s.ids, b.key())
	delete(s.used, id)
	err := errors.Join(gone(s.maps[backendsMap].Delete(id)), gone(s.maps[countsMap].Delete(id)))
	if err != nil {
		return nil, fmt.Errorf("delete the backend: %w", err)
	}
	return s.probes(id)
}

func gone(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// PutVIP adds a virtual address or changes what its new flows are balanced over, all at once. Backends must have been
// put before; with none, clients are refused.
func (s *Set) PutVIP(v VIP) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	value := vipValue{Service: serviceBytes(v.Service)}
	ids := make([]uint32, len(v.Backends))
	for i, t := range v.Backends {
		id, known := s.ids[backendKey{v.Service, t}]
		if !known {
			return fmt.Errorf("there is no backend %s with MAC %s: %w", t.Address, t.MAC, unix.ENOENT)
		}
		ids[i] = id
	}
	fill(&value.Slot, v.Backends, ids)
	if err := put(s.maps[vipsMap], v.Address.As16(), &value); err != nil {
		return fmt.Errorf("put the virtual address: %w", err)
	}
	return nil
}

// DelVIP removes a virtual address; one that is not there is no error.
func (s *Set) DelVIP(a netip.Addr) error {
	if err := gone(s.maps[vipsMap].Delete(a.As16())); err != nil {
		return fmt.Errorf("delete the virtual address: %w", err)
	}
	return nil
}

// Read returns what the maps hold, sorted by address.
func (s *Set) Read() ([]VIP, []Backend, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	byID, err := s.readBackends()
	if err != nil {
		return nil, nil, err
	}
	vips, err := s.readVIPs(byID)
	if err != nil {
		return nil, nil, err
	}
	backends := make([]Backend, 0, len(byID))
	for _, b := range byID {
		backends = append(backends, b)
	}
	slices.SortFunc(backends, func(a, b Backend) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Service, b.Service), bytes.Compare(a.MAC[:], b.MAC[:]))
	})
	return vips, backends, nil
}

// readBackends returns the backends by id, and remembers the ids.
func (s *Set) readBackends() (map[uint32]Backend, error) {
	byID := map[uint32]Backend{}
	var id uint32
	var v backendValue
	entries := s.maps[backendsMap].Iterate()
	for entries.Next(&id, &v) {
		byID[id] = Backend{Service: serviceID(v.Service), Address: netip.AddrFrom16(v.Address).Unmap(), MAC: v.MAC,
			Draining: v.Draining != 0}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("list the backends: %w", err)
	}
	clear(s.ids)
	clear(s.used)
	for id, b := range byID {
		s.ids[b.key()], s.used[id] = id, true
	}
	return byID, nil
}

func (s *Set) readVIPs(byID map[uint32]Backend) ([]VIP, error) {
	var vips []VIP
	var address [16]byte
	var v vipValue
	entries := s.maps[vipsMap].Iterate()
	for entries.Next(&address, &v) {
		vips = append(vips, vipOf(netip.AddrFrom16(address).Unmap(), &v, byID))
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("list the virtual addresses: %w", err)
	}
	slices.SortFunc(vips, func(a, b VIP) int { return a.Address.Compare(b.Address) })
	return vips, nil
}

// vipOf returns the virtual address that an entry makes.
func vipOf(a netip.Addr, v *vipValue, byID map[uint32]Backend) VIP {
	vip := VIP{Address: a, Service: serviceID(v.Service)}
	idOf := map[Target]uint32{}
	for _, id := range v.Slot {
		b, known := byID[id]
		if !known {
			vip.Broken = vip.Broken || id != 0
			continue
		}
		vip.Broken = vip.Broken || b.Service != vip.Service
		idOf[Target{b.Address, b.MAC}] = id
	}
	for t := range idOf {
		vip.Backends = append(vip.Backends, t)
	}
	slices.SortFunc(vip.Backends, func(a, b Target) int {
		return cmp.Or(a.Address.Compare(b.Address), bytes.Compare(a.MAC[:], b.MAC[:]))
	})
	ids := make([]uint32, len(vip.Backends))
	for i, t := range vip.Backends {
		ids[i] = idOf[t]
	}
	var right [slots]uint32
	fill(&right, vip.Backends, ids)
	vip.Broken = vip.Broken || right != v.Slot
	return vip
}

// Counts returns the counters of every backend, sorted by address.
func (s *Set) Counts() ([]Count, error) {
	_, backends, err := s.Read()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Count, 0, len(backends))
	for _, b := range backends {
		c := Count{Backend: b}
		var each []countValue
		if err := gone(s.maps[countsMap].Lookup(s.ids[b.key()], &each)); err != nil {
			return nil, fmt.Errorf("read the counters of backend %s: %w", b.Address, err)
		}
		for _, v := range each {
			c.Flows, c.Packets, c.Bytes = c.Flows+v.Flows, c.Packets+v.Packets, c.Bytes+v.Bytes
		}
		out = append(out, c)
	}
	return out, nil
}
