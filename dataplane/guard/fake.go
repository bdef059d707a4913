package guard

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// Apply does to n what the kernel does for a Change: it is the table of a fake kernel.
func (n *Network) Apply(c Change) error {
	if c.Verb == MakeTable {
		n.Table = true
		return nil
	}
	if !n.Table {
		return unix.ENOENT
	}
	switch c.Verb {
	case PutPort:
		if len(c.Port) >= ifNameSize {
			return unix.EINVAL
		}
		n.Ports = insert(n.Ports, Port{Name: c.Port}, comparePorts)
	case DelPort:
		n.Ports = remove(n.Ports, Port{Name: c.Port}, comparePorts)
	case PutSource:
		n.Sources = insert(n.Sources, Source{c.Port, c.MAC, c.Address}, compareSources)
	case DelSource:
		n.Sources = remove(n.Sources, Source{c.Port, c.MAC, c.Address}, compareSources)
	default:
		return n.applyPolicy(c)
	}
	return nil
}

func (n *Network) applyPolicy(c Change) error {
	p := &n.Policy
	switch c.Verb {
	case PutClass:
		return p.putClass(c)
	case DelClass:
		if slices.ContainsFunc(n.Ports, func(p Port) bool { return p.Class == c.Class }) {
			return unix.EBUSY
		}
		p.Classes = remove(p.Classes, Class{Name: c.Class}, compareClasses)
	case DelPolicy:
		if len(p.Classes) > 0 {
			return unix.EBUSY
		}
		*p = Policy{}
	case PutMember:
		return p.putMember(c)
	case DelMember:
		p.Members = remove(p.Members, Member{Address: c.Address}, compareMembers)
	case Judge:
		return n.judge(c)
	case Release:
		if i, found := slices.BinarySearchFunc(n.Ports, Port{Name: c.Port}, comparePorts); found {
			n.Ports[i].Class = ""
		}
	default:
		return unix.EOPNOTSUPP
	}
	return nil
}

func (p *Policy) putClass(c Change) error {
	admits, err1 := parseSpans(c.Admits)
	reaches, err2 := parseSpans(c.Reaches)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	p.Classes = insert(remove(p.Classes, Class{Name: c.Class}, compareClasses), Class{c.Class, admits, reaches}, compareClasses)
	return nil
}

func (p *Policy) putMember(c Change) error {
	m := Member{c.Address, c.Number}
	i, found := slices.BinarySearchFunc(p.Members, m, compareMembers)
	switch {
	case len(p.Classes) == 0 || c.Replaces && !found:
		return unix.ENOENT
	case found && !c.Replaces && p.Members[i] != m:
		return unix.EEXIST
	}
	p.Members = insert(remove(p.Members, m, compareMembers), m, compareMembers)
	return nil
}

func (n *Network) judge(c Change) error {
	i, found := slices.BinarySearchFunc(n.Ports, Port{Name: c.Port}, comparePorts)
	switch {
	case !found: // the kernel would take it; nobody asks for it
		return unix.EINVAL
	case !n.Policy.has(c.Class) || c.Replaces && n.Ports[i].Class == "":
		return unix.ENOENT
	case !c.Replaces && n.Ports[i].Class != "" && n.Ports[i].Class != c.Class:
		return unix.EEXIST
	}
	n.Ports[i].Class = c.Class
	return nil
}

func insert[T any](s []T, v T, compare func(a, b T) int) []T {
	i, found := slices.BinarySearchFunc(s, v, compare)
	if found {
		return s
	}
	return slices.Insert(s, i, v)
}

func remove[T any](s []T, v T, compare func(a, b T) int) []T {
	i, found := slices.BinarySearchFunc(s, v, compare)
	if !found {
		return s
	}
	return slices.Delete(s, i, i+1)
}
