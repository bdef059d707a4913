//go:build linux

package guard

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/vxlan"
)

// ErrUnsupported is wrapped by what Open returns on a kernel without what the table needs.
var ErrUnsupported = errors.New("this kernel cannot guard containers' ports")

// ErrSilent is returned by Refusals on a kernel without nfnetlink_log: drops are counted there all the same.
var ErrSilent = errors.New("this kernel has no nfnetlink_log, so nobody hears who tried what; load the module and restart netdriver")

// Table is the kernel's table in one network namespace. Its methods may be called from any goroutine.
type Table struct {
	ns int

	mu     sync.Mutex
	conn   *nftables.Conn
	reader *netlink.Conn
	// ports are the netlink addresses that conn has and had, by which our own changes are told from others'.
	ports map[uint32]bool
	// silent: the kernel cannot copy dropped frames to us.
	silent bool
	dump   *dump
}

// Open returns the table of the network namespace that the descriptor ns is of, and finds out whether the kernel can have
// it. ns must stay open.
func Open(ns int) (*Table, error) {
	t, err := Look(ns)
	if err != nil {
		return nil, err
	}
	// Without nf_tables the kernel answers a transaction once, and the library would wait for one answer per message for ever.
	if _, err = t.generation(); err == nil {
		err = t.try(true)
	}
	if errors.Is(err, unix.ENOENT) {
		t.silent = true
		err = t.try(false)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: it needs nf_tables for the bridge family, Linux 5.11: %w", ErrUnsupported, err), t.Close())
	}
	return t, nil
}

// Look returns the table of a network namespace for reading what it has counted: nothing is tried or made.
func Look(ns int) (*Table, error) {
	t := &Table{ns: ns, ports: map[uint32]bool{}}
	var err error
	if t.reader, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns}); err != nil {
		return nil, fmt.Errorf("open a netlink socket for nftables: %w", err)
	}
	if err := t.connect(); err != nil {
		return nil, errors.Join(err, t.reader.Close())
	}
	return t, nil
}

func (t *Table) connect() (err error) {
	if t.conn != nil {
		t.conn.CloseLasting() // of no use any more
	}
	if t.conn, err = nftables.New(nftables.WithNetNSFd(t.ns), nftables.AsLasting(), nftables.WithSockOptions(t.own)); err != nil {
		return fmt.Errorf("open a netlink socket for nftables: %w", err)
	}
	return nil
}

// own notes the address of a socket of ours.
func (t *Table) own(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var address unix.Sockaddr
	if e := raw.Control(func(fd uintptr) { address, err = unix.Getsockname(int(fd)) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	if a, ok := address.(*unix.SockaddrNetlink); ok {
		t.ports[a.Pid] = true
	}
	return nil
}

// Close gives up the socket; the table stays.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(t.conn.CloseLasting(), t.reader.Close())
}

// try makes a table of another name with everything in it, and removes it in the same transaction.
func (t *Table) try(tell bool) error {
	b := t.batch("netdriver-probe")
	b.make(tell)
	t.conn.DelTable(b.table)
	return t.flush()
}

// Make makes the table with what all networks share. Sets and their elements that are there stay.
func (t *Table) Make() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.batch(tableName)
	b.make(!t.silent)
	if err := t.flush(); err == nil {
		return nil
	}
	// Something of that name is there that is of another kind. Everybody's elements go with it and are put anew.
	b = t.batch(tableName)
	t.conn.AddTable(b.table)
	t.conn.DelTable(b.table)
	b.make(!t.silent)
	if err := t.flush(); err != nil {
		return fmt.Errorf("make table bridge %s: %w", tableName, err)
	}
	return nil
}

// Run makes the changes in one transaction. If it fails they are tried one by one; the errors are those of the changes,
// nil for each that succeeded. To remove what is gone is no error.
func (t *Table) Run(changes []Change) []error {
	t.mu.Lock()
	defer t.mu.Unlock()
	errs := make([]error, len(changes))
	if t.run(changes...) == nil {
		return errs
	}
	for i, c := range changes {
		err := t.run(c)
		if !c.Verb.Removes() || !errors.Is(err, unix.ENOENT) {
			errs[i] = err
		}
	}
	return errs
}

func (t *Table) run(changes ...Change) error {
	b := t.batch(tableName)
	for _, c := range changes {
		b.add(c)
	}
	b.end()
	return t.flush()
}

// flush sends what was collected. After an error the socket may hold answers that nobody waits for.
func (t *Table) flush() error {
	t.dump = nil
	err := t.conn.Flush()
	if err != nil {
		err = errors.Join(err, t.connect())
	}
	return err
}

// batch collects a transaction. Elements of one set are sent together.
type batch struct {
	conn  *nftables.Conn
	table *nftables.Table
	err   error
	ids   uint32

	set   string
	dels  bool
	elems []nftables.SetElement
}

func (t *Table) batch(name string) *batch {
	return &batch{conn: t.conn, table: &nftables.Table{Name: name, Family: nftables.TableFamilyBridge}}
}

func (b *batch) make(tell bool) {
	b.conn.AddTable(b.table)
	for _, s := range b.sets() {
		s.ID = b.nextID()
		b.note(b.conn.AddSet(s, nil))
	}
	all := chains()
	for _, c := range all {
		b.conn.AddChain(b.chain(c))
	}
	for _, c := range all {
		b.fill(c, tell)
	}
}

func (b *batch) note(err error) { b.err = errors.Join(b.err, err) }

func (b *batch) chain(c chain) *nftables.Chain {
	k := &nftables.Chain{Name: c.name, Table: b.table}
	if c.hook != nil {
		accept := nftables.ChainPolicyAccept
		k.Hooknum, k.Priority, k.Type, k.Policy = c.hook, &c.priority, nftables.ChainTypeFilter, &accept
	}
	return k
}

// fill replaces the rules of a chain.
func (b *batch) fill(c chain, tell bool) {
	k := &nftables.Chain{Name: c.name, Table: b.table}
	b.conn.FlushChain(k)
	for _, r := range c.told(tell) {
		b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: k, Exprs: r, UserData: r.comment()})
	}
}

// maxElements are sent in one message: the list is an attribute, which has 65,535 bytes at most.
const maxElements = 400

// element adds or removes one element of a set.
func (b *batch) element(set string, del bool, e nftables.SetElement) {
	if b.set != set || b.dels != del || len(b.elems) == maxElements {
		b.end()
	}
	b.set, b.dels = set, del
	b.elems = append(b.elems, e)
}

// end sends the collected elements on their way.
func (b *batch) end() {
	if len(b.elems) == 0 {
		return
	}
	s := &nftables.Set{Name: b.set, Table: b.table, IsMap: b.elems[0].Val != nil || b.elems[0].VerdictData != nil}
	if b.dels {
		b.note(b.conn.SetDeleteElements(s, b.elems))
	} else {
		b.note(b.conn.SetAddElements(s, b.elems))
	}
	b.elems = nil
}

func (b *batch) add(c Change) {
	del := c.Verb.Removes()
	comment := ""
	if !del {
		comment = ownerComment(c.VNI)
	}
	switch c.Verb {
	case PutClass, DelClass, DelPolicy, PutMember, DelMember, Judge, Release:
		b.policy(c, comment)
	case PutPort, DelPort:
		for _, set := range counted() {
			b.element(set, del, nftables.SetElement{Key: nameKey(c.Port), Comment: comment})
		}
	case PutSource, DelSource:
		b.element(ownSet(c.Address), del, nftables.SetElement{Key: sourceKey(c.Port, c.MAC, c.Address), Comment: comment})
	}
}

// counted are the sets that have every guarded port.
func counted() []string { return []string{setSpoofed, setDenied} }

func (b *batch) sets() []*nftables.Set {
	own := func(name string, address nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Name: name, Table: b.table,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, address)}
	}
	all := []*nftables.Set{own(setOwn4, nftables.TypeIPAddr), own(setOwn6, nftables.TypeIP6Addr)}
	for _, name := range counted() {
		all = append(all, &nftables.Set{Name: name, Table: b.table, KeyType: nftables.TypeIFName, Counter: true,
			KeyByteOrder: binaryutil.NativeEndian}) // else nft shows no names
	}
	mutable := func(name string) *nftables.Set { return &nftables.Set{Name: name, Table: b.table} }
	to := mutable(mapTo)
	to.IsMap, to.KeyType, to.DataType, to.KeyByteOrder = true, nftables.TypeIFName, nftables.TypeVerdict, binaryutil.NativeEndian
	learns := mutable(setLearns)
	learns.KeyType, learns.KeyByteOrder = nftables.TypeIFName, binaryutil.NativeEndian
	all = append(all, to, learns)
	for _, name := range []string{setFlows4, setFlows6} {
		f, address := mutable(name), nftables.TypeIPAddr
		if name == setFlows6 {
			address = nftables.TypeIP6Addr
		}
		f.KeyType = nftables.MustConcatSetType(nftables.TypeIFName, address, nftables.TypeInetService, address, nftables.TypeInetService)
		f.Dynamic, f.HasTimeout, f.Timeout, f.Size = true, true, flowIdle, maxFlows
		all = append(all, f)
	}
	return all
}

// nameKey is a device's name as the kernel compares it.
func nameKey(name string) []byte {
	b := make([]byte, ifNameSize)
	copy(b, name)
	return b
}

// Each part of a concatenation begins at a multiple of four bytes.
const (
	macAt     = ifNameSize
	addressAt = macAt + 8
)

func sourceKey(port string, mac vxlan.MAC, a interface{ AsSlice() []byte }) []byte {
	b := append(nameKey(port), mac[:]...)
	return append(append(b, 0, 0), a.AsSlice()...)
}
