//go:build linux

package balance

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/netdriver/netdriver/dataplane/tc"
)

// ingress is what comes from the container, egress what goes to it. The device is the host's end.
func ingress() tc.Place { return tc.Ingress(fromContainer, tc.Balance) }
func egress() tc.Place  { return tc.Egress(toContainer, tc.Balance) }

// Attach puts the programs on the device with that index, in the place of other versions of them.
func (s *Set) Attach(index int) error {
	// First the way back: no flow begins before its replies are understood.
	return errors.Join(s.attach(index, egress(), s.to), s.attach(index, ingress(), s.from))
}

func (s *Set) attach(index int, d tc.Place, p *ebpf.Program) error {
	present, err := s.hook.Programs(index, d)
	if err != nil {
		return fmt.Errorf("list the programs: %w", err)
	}
	ours, _ := idOf(p)
	if slices.Contains(present, ours) {
		return nil
	}
	var old *ebpf.Program
	if len(present) > 0 {
		if old, err = ebpf.NewProgramFromID(present[0]); err == nil {
			defer old.Close()
		}
	}
	if err := s.hook.Attach(index, d, p, old); err != nil {
		return fmt.Errorf("attach program %s: %w", d.Program, err)
	}
	return nil
}

func idOf(p *ebpf.Program) (ebpf.ProgramID, bool) {
	i, err := p.Info()
	if err != nil {
		return 0, false
	}
	return i.ID()
}

// Detach takes the programs off the device, whatever version they are.
func (s *Set) Detach(index int) error {
	var errs []error
	for _, d := range []tc.Place{ingress(), egress()} {
		present, err := s.hook.Programs(index, d)
		errs = append(errs, err)
		for _, id := range present {
			p, err := ebpf.NewProgramFromID(id)
			if err != nil {
				continue // gone
			}
			errs = append(errs, s.hook.Detach(index, d, p), p.Close())
		}
	}
	return errors.Join(errs...)
}

// Programs returns the ids of the programs with our names on the device, whatever version they are.
func (s *Set) Programs(index int) ([]ebpf.ProgramID, error) {
	from, err := s.hook.Programs(index, ingress())
	if err != nil {
		return nil, fmt.Errorf("list the programs on the device: %w", err)
	}
	to, err := s.hook.Programs(index, egress())
	if err != nil {
		return nil, fmt.Errorf("list the programs on the device: %w", err)
	}
	return slices.Concat(from, to), nil
}

// Attached says whether both programs are on the device, in this version and over these maps.
func (s *Set) Attached(index int) (bool, error) {
	for d, want := range map[tc.Place]*ebpf.Program{ingress(): s.from, egress(): s.to} {
		present, err := s.hook.Programs(index, d)
		if err != nil {
			return false, fmt.Errorf("list the programs on the device: %w", err)
		}
		if len(present) != 1 || !s.alike(present[0], want) {
			return false, nil
		}
	}
	return true, nil
}

// alike says whether the program is ours or one that a former daemon loaded from the same object over the same maps.
func (s *Set) alike(id ebpf.ProgramID, want *ebpf.Program) bool {
	if ours, ok := idOf(want); ok && ours == id {
		return true
	}
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false
	}
	defer p.Close()
	there, err := p.Info()
	if err != nil {
		return false
	}
	here, err := want.Info()
	if err != nil {
		return false
	}
	a, _ := there.MapIDs()
	b, _ := here.MapIDs()
	slices.Sort(a)
	slices.Sort(b)
	return there.Tag == here.Tag && slices.Equal(a, b)
}

// Adopt returns a Set over the maps of the programs that a former daemon left on the device. It is nil if there are none,
// or if their layout is not that of this version.
func Adopt(index int) (*Set, error) {
	h := tc.Choose()
	found := map[string]*ebpf.Map{}
	for _, d := range []tc.Place{ingress(), egress()} {
		present, err := h.Programs(index, d)
		if err != nil {
			return nil, fmt.Errorf("list the programs on the device: %w", err)
		}
		for _, id := range present {
			if err := collect(id, found); err != nil {
				return nil, errors.Join(err, closeAll(found))
			}
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	spec, err := specification()
	if err != nil {
		return nil, errors.Join(err, closeAll(found))
	}
	ours := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		have := found[name]
		if have == nil || m.Compatible(have) != nil {
			return nil, closeAll(found)
		}
		ours[name] = have
	}
	s, err := load(spec, ours)
	err = errors.Join(err, closeAll(found)) // the Set has its own descriptors
	if err != nil {
		return nil, err
	}
	if _, _, err := s.Read(); err != nil { // learns the ids
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// collect adds the program's maps to found, by name.
func collect(id ebpf.ProgramID, found map[string]*ebpf.Map) error {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil // gone
	}
	defer p.Close()
	i, err := p.Info()
	if err != nil {
		return fmt.Errorf("ask for program %d: %w", id, err)
	}
	ids, _ := i.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return fmt.Errorf("open map %d: %w", id, err)
		}
		info, err := m.Info()
		if err != nil || found[info.Name] != nil {
			m.Close()
			continue
		}
		found[info.Name] = m
	}
	return nil
}

func closeAll(all map[string]*ebpf.Map) error {
	var errs []error
	for m := range maps.Values(all) {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
