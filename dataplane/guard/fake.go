package guard

import (
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
		return unix.EOPNOTSUPP
	}
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
