package store

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strings"
)

// follow is one watch of a Mirror. The mirror's lock guards all but the fixed fields.
type follow struct {
	prefix  string // fixed
	network string // fixed: whose endpoints or services it follows, empty for all else
	// run applies what the watch delivers until its context ends; fixed.
	run  func(context.Context, *follow)
	stop context.CancelFunc // set while the mirror runs
	// synced is true after the first batch, revision is that of the last.
	synced   bool
	revision int64
}

// badRecord is a record that could not be decoded.
type badRecord struct {
	modified int64
	err      error
}

// table says how one prefix of the store becomes one map of Records.
type table[K comparable, R any] struct {
	prefix string
	// index is the map's key for a key of the store without the prefix, false if there can be none.
	index func(rest string) (K, bool)
	// decode reads a record and refuses one that belongs to another key.
	decode func(KV) (R, error)
	// records is where the map is.
	records func(*Records) *map[K]R
	// matters says whether a change from old to now (nil if absent) is one for changed.
	matters func(old, now *R) bool
	changed func(k K, revision int64)
}

// change is an event with its record decoded.
type change[K comparable, R any] struct {
	key      string
	index    K
	modified int64
	deleted  bool
	record   R
	err      error
}

// base returns the follows that every mirror has.
func (m *Mirror) base() []*follow {
	return []*follow{
		newFollow(m, table[string, Node]{
			prefix:  NodePrefix,
			index:   text,
			decode:  func(kv KV) (Node, error) { return decodeAt(kv, func(n Node) string { return NodeKey(n.Name) }) },
			records: func(r *Records) *map[string]Node { return &r.Nodes },
			matters: func(old, now *Node) bool { return old == nil || now == nil || old.VTEP != now.VTEP },
			changed: func(_ string, revision int64) { m.nodeChanged(revision) },
		}),
		newFollow(m, table[string, string]{
			prefix:  AlivePrefix,
			index:   text,
			decode:  func(kv KV) (string, error) { return string(kv.Value), nil },
			records: func(r *Records) *map[string]string { return &r.Alive },
			matters: never[string],
		}),
		newFollow(m, table[string, Network]{
			prefix: NetworkPrefix,
			index:  text,
			decode: func(kv KV) (Network, error) {
				return decodeAt(kv, func(n Network) string { return NetworkKey(n.Name) })
			},
			records: func(r *Records) *map[string]Network { return &r.Networks },
			matters: always[Network],
			changed: m.networkChanged,
		}),
		newFollow(m, table[netip.Prefix, Pool]{
			prefix:  PoolPrefix,
			index:   subnet,
			decode:  func(kv KV) (Pool, error) { return decodeAt(kv, func(p Pool) string { return PoolKey(p.Subnet) }) },
			records: func(r *Records) *map[netip.Prefix]Pool { return &r.Pools },
			matters: never[Pool],
		}),
	}
}

// endpoints returns the follow of one network's endpoints.
func (m *Mirror) endpoints(network string) *follow {
	// Thousands of endpoints share a few names; each is kept once, for as long as the network is followed.
	names := map[string]string{network: network, PhaseCreated: PhaseCreated, PhaseJoined: PhaseJoined}
	intern := func(s *string) {
		if have, ok := names[*s]; ok {
			*s = have
		} else {
			names[*s] = *s
		}
	}
	f := newFollow(m, table[string, Endpoint]{
		prefix: NetworkEndpoints(network),
		index:  text,
		decode: func(kv KV) (Endpoint, error) {
			e, err := decodeAt(kv, func(e Endpoint) string { return EndpointKey(e.Network, e.ID) })
			for _, s := range []*string{&e.Network, &e.Node, &e.DockerID, &e.Phase} {
				intern(s)
			}
			return e, err
		},
		records: func(r *Records) *map[string]Endpoint {
			es := r.Endpoints[network]
			return &es
		},
		matters: always[Endpoint],
		changed: func(_ string, revision int64) { m.networkChanged(network, revision) },
	})
	f.network = network
	return f
}

// services returns the follow of one network's services.
func (m *Mirror) services(network string) *follow {
	f := newFollow(m, table[string, Service]{
		prefix: NetworkServices(network),
		index:  text,
		decode: func(kv KV) (Service, error) {
			return decodeAt(kv, func(s Service) string { return ServiceKey(s.Network, s.ID) })
		},
		records: func(r *Records) *map[string]Service {
			ss := r.Services[network]
			return &ss
		},
		matters: always[Service],
		changed: func(_ string, revision int64) { m.networkChanged(network, revision) },
	})
	f.network = network
	return f
}

func newFollow[K comparable, R any](m *Mirror, t table[K, R]) *follow {
	run := func(ctx context.Context, f *follow) {
		for b := range m.store.Watch(ctx, t.prefix) {
			changes := t.read(b) // without the lock: a first batch may have many records
			m.deliver(f, b, func() { t.apply(m, changes, b) })
		}
	}
	return &follow{prefix: t.prefix, run: run}
}

// deliver applies one batch of f, unless f was stopped meanwhile.
func (m *Mirror) deliver(f *follow, b Batch, apply func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.follows[f.prefix] != f {
		return
	}
	if b.Reset && b.Revision < f.revision {
		// The store was restored from an older copy: what was true at the higher revisions is not any more.
		clear(m.revisions)
		m.nodeRevision = 0
	}
	apply()
	if !f.synced {
		m.firstSync(f)
	}
	f.synced, f.revision = true, b.Revision
	m.broadcast()
}

// read decodes the events of b.
func (t table[K, R]) read(b Batch) []change[K, R] {
	changes := make([]change[K, R], 0, len(b.Events))
	for _, e := range b.Events {
		c := change[K, R]{key: e.KV.Key, modified: e.KV.Modified, deleted: e.Deleted}
		var ok bool
		if c.index, ok = t.index(strings.TrimPrefix(c.key, t.prefix)); !ok {
			c.err = fmt.Errorf("%w: no such key can be: %s", ErrRecord, c.key)
		} else if !c.deleted {
			c.record, c.err = t.decode(e.KV)
		}
		changes = append(changes, c)
	}
	return changes
}

// apply changes the records. The caller holds the mirror's lock.
func (t table[K, R]) apply(m *Mirror, changes []change[K, R], b Batch) {
	records := *t.records(&m.records)
	if b.Reset {
		t.removeAbsent(m, records, changes, b.Revision)
	}
	for _, c := range changes {
		switch {
		case c.deleted:
			delete(m.bad, c.key)
			t.set(records, c.index, nil, c.modified)
		case c.err != nil:
			m.noteBad(c.key, c.modified, c.err)
		default:
			delete(m.bad, c.key)
			t.set(records, c.index, &c.record, c.modified)
		}
	}
}

// removeAbsent removes the records, and the complaints, that a complete reading of the prefix did not show.
func (t table[K, R]) removeAbsent(m *Mirror, records map[K]R, changes []change[K, R], revision int64) {
	there := make(map[K]bool, len(changes))
	keys := make(map[string]bool, len(changes))
	for _, c := range changes {
		there[c.index], keys[c.key] = true, true
	}
	for k := range records {
		if !there[k] {
			t.set(records, k, nil, revision)
		}
	}
	maps.DeleteFunc(m.bad, func(key string, _ badRecord) bool { return strings.HasPrefix(key, t.prefix) && !keys[key] })
}

// set makes now (nil for none) the record at k.
func (t table[K, R]) set(records map[K]R, k K, now *R, revision int64) {
	var old *R
	if r, ok := records[k]; ok {
		old = &r
	}
	if now != nil {
		records[k] = *now
	} else {
		delete(records, k)
	}
	if (old != nil || now != nil) && t.matters(old, now) {
		t.changed(k, revision)
	}
}

// decodeAt decodes a record and refuses it when it says of itself that it belongs to another key: whoever wrote it
// there made a mistake, and two records would claim one place.
func decodeAt[R Record](kv KV, key func(R) string) (R, error) {
	r, err := Decode[R](kv)
	if err != nil {
		return r, err
	}
	if k := key(r); k != kv.Key {
		return r, fmt.Errorf("%w %s: it belongs to %s", ErrRecord, kv.Key, k)
	}
	return r, nil
}

func (m *Mirror) noteBad(key string, modified int64, err error) {
	if m.bad[key].modified == modified {
		return
	}
	m.bad[key] = badRecord{modified, err}
	m.log.Error("cannot read a record, the last good one stays in force", "key", key, "revision", modified, "err", err)
}

// networkChanged notes that the wanted state of a network may be another. The caller holds the lock.
func (m *Mirror) networkChanged(network string, revision int64) {
	m.revisions[network] = max(m.revisions[network], revision)
	m.mark(network)
	m.forget(network)
}

// nodeChanged does so for all networks that can have an endpoint on that node.
func (m *Mirror) nodeChanged(revision int64) {
	m.nodeRevision = max(m.nodeRevision, revision)
	for network := range m.records.Endpoints {
		m.mark(network)
	}
}

// firstSync marks the networks for which Synced may become true, also when nothing else is said of them.
func (m *Mirror) firstSync(f *follow) {
	if f.network != "" {
		m.mark(f.network)
		return
	}
	for network := range m.records.Networks {
		m.mark(network)
	}
	for network := range m.records.Endpoints {
		m.mark(network)
	}
}

func (m *Mirror) mark(network string) {
	m.changed[network] = true
	m.lastGeneration++
	m.generations[network] = m.lastGeneration
	select {
	case m.changes <- struct{}{}:
	default:
	}
}

// forget drops the revision of a network that is neither there nor followed. The caller holds the lock.
func (m *Mirror) forget(network string) {
	_, there := m.records.Networks[network]
	_, followed := m.records.Endpoints[network]
	if !there && !followed {
		delete(m.revisions, network)
		delete(m.generations, network)
	}
}

// broadcast wakes all that wait. The caller holds the lock.
func (m *Mirror) broadcast() {
	close(m.moved)
	m.moved = make(chan struct{})
}

func text(rest string) (string, bool) { return rest, true }

// subnet undoes subnetKey.
func subnet(rest string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(strings.Replace(rest, "_", "/", 1))
	return p, err == nil
}

func always[R any](_, _ *R) bool { return true }
func never[R any](_, _ *R) bool  { return false }
