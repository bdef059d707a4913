package keying

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

// shortest is how long the keys of several networks last: what the most demanding of them wants.
type shortest time.Duration

func (s *shortest) add(d time.Duration) {
	if *s == 0 || d < time.Duration(*s) {
		*s = shortest(d)
	}
}

// grace and keep are the machine's other times; see ipsec.Config. A peer whose daemon restarts, or whose store is away, is
// soon back.
func (s shortest) grace() time.Duration {
	return min(ipsec.DefaultGrace, time.Duration(s)/2)
}

func (s shortest) keep() time.Duration { return max(time.Duration(s), time.Minute) }

// round is one turn of the loop.
func (k *Keying) round(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, kernelTimeout)
	defer cancel()
	now, ok := k.outlook(ctx)
	if !ok {
		return
	}
	k.last = now
	if len(now.networks) == 0 {
		if now.anywhere {
			k.ability.prepare()
		}
		k.machine = nil
		k.tell("encap", "cannot close", k.encaps.want(nil))
		k.retract(ctx, now)
		k.tell("locks", "cannot remove the locks of encrypted networks", k.unlock(ctx))
		k.note(now, nil)
		return
	}
	err := k.ready(ctx, now)
	switch {
	case err == nil:
		err = k.step(ctx, now)
	case errors.Is(err, errTrying):
		err = k.relock(ctx, now.port)
	default:
		err = errors.Join(err, k.relock(ctx, now.port))
	}
	err = errors.Join(err, k.cfg.Filter.Problem(), k.encaps.want(now.encapPorts(k.cfg.Node.Encap)))
	k.tell("keys", "encryption is not as wanted", err)
	k.note(now, err)
}

// outlook returns what the records say, if that may be acted upon. When nodes or networks seem to be gone the store itself is
// asked whether it knows this node: an emptied one must tear down nothing.
func (k *Keying) outlook(ctx context.Context) (outlook, bool) {
	records, edition, synced := k.book.read()
	if !synced {
		return outlook{}, false
	}
	if edition == k.edition && k.edition != 0 {
		return k.last, true
	}
	now := k.decoder.decode(records)
	for key, err := range now.bad {
		k.tell(key, "a record of encryption cannot be believed, so its writer is treated as absent", err)
	}
	if k.last.published && !now.published {
		k.pub.doubt()
	}
	if !now.known || k.shrinks(now) && !k.confirm(ctx) {
		return k.last, k.edition != 0 && k.last.known
	}
	k.edition = edition
	k.pub.clear(now.strays)
	return now, true
}

// shrinks says whether something that was there is not any more.
func (k *Keying) shrinks(now outlook) bool {
	for name := range k.last.offers {
		if _, there := now.offers[name]; !there {
			return true
		}
	}
	for name := range k.last.peers {
		if !now.peers[name] {
			return true
		}
	}
	return len(now.networks) < len(k.last.networks)
}

// confirm asks the store itself whether it knows this node.
func (k *Keying) confirm(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, slowest/2)
	defer cancel()
	kv, err := k.cfg.Store.Get(ctx, store.NodeKey(k.cfg.Node.Name))
	if err != nil {
		return false
	}
	n, err := store.Decode[store.Node](kv)
	return err == nil && n.ID == k.cfg.Node.ID
}

// ready makes the machine, or tells it what is new.
func (k *Keying) ready(ctx context.Context, now outlook) error {
	if err := k.cfg.Identity.Safe(); err != nil {
		return err
	}
	able, err := k.ability.now()
	if err != nil {
		return err
	}
	cfg := ipsec.Config{
		Port: now.port, Ciphers: now.option.Allowed(able), Encap: k.cfg.Node.Encap,
		Rekey: time.Duration(now.rekey), Grace: now.rekey.grace(), Keep: now.rekey.keep(), MaxPackets: ipsec.DefaultMaxPackets,
	}
	if k.machine != nil {
		return k.machine.Configure(cfg)
	}
	m, err := ipsec.NewMachine(k.self(), cfg)
	if err != nil {
		return err
	}
	past, err := k.past(ctx, now)
	if err != nil {
		return fmt.Errorf("find out what this node had before: %w", err)
	}
	m.Resume(past)
	k.machine = m
	return nil
}

func (k *Keying) self() ipsec.Identity {
	return ipsec.Identity{Name: k.cfg.Node.Name, ID: k.cfg.Node.ID, VTEP: k.cfg.Node.VTEP}
}

// past is what a former daemon has left in the store and in the kernel.
func (k *Keying) past(ctx context.Context, now outlook) (ipsec.Past, error) {
	links, err := k.pub.adopt(ctx, now)
	if err != nil {
		return ipsec.Past{}, err
	}
	k.kernel.Lock()
	defer k.kernel.Unlock()
	k.doubt = true
	if err := k.look(ctx); err != nil {
		return ipsec.Past{}, err
	}
	k.unseen = false
	return ipsec.Past{Offer: now.offers[k.cfg.Node.Name], Links: links, View: now.view(), Have: k.have}, nil
}

// step makes the kernel as the machine wants it, and publishes.
func (k *Keying) step(ctx context.Context, now outlook) error {
	if offer, ok := k.pub.offered(); ok {
		k.machine.Published(offer)
	}
	err := k.change(ctx, now)
	links := map[string]ipsec.Link{}
	for _, l := range k.machine.Links() {
		links[l.To] = l
	}
	offer := k.machine.Offer()
	k.pub.publish(&offer, links)
	return err
}

// change is the part of a step that looks at the kernel.
func (k *Keying) change(ctx context.Context, now outlook) error {
	k.kernel.Lock()
	defer k.kernel.Unlock()
	k.doubt = k.doubt || time.Since(k.readAt) >= rereadEvery
	if err := k.lockOnce(ctx, now.port); err != nil {
		return err
	}
	if err := k.look(ctx); err != nil {
		return err
	}
	if k.unseen {
		k.machine.Found(k.have)
		k.unseen = false
	}
	k.count(ctx)
	v := now.view()
	v.Fresh = k.pub.fresh()
	v.Taken = func(spi uint32) bool { return k.taken[spi] }
	want, err := k.machine.Step(time.Since(k.began), v)
	return errors.Join(err, k.apply(ctx, want, k.machine.Done))
}

// lockOnce sets the locks if they are not known to be there. The caller holds the kernel's lock.
func (k *Keying) lockOnce(ctx context.Context, port uint16) error {
	if k.locked == port {
		return nil
	}
	return k.lock(ctx, port)
}

// relock sets the locks of a node that has networks and cannot encrypt.
func (k *Keying) relock(ctx context.Context, port uint16) error {
	k.kernel.Lock()
	defer k.kernel.Unlock()
	k.doubt = k.doubt || time.Since(k.readAt) >= rereadEvery
	if k.doubt {
		k.locked = 0
	}
	return k.lockOnce(ctx, port)
}

// count tells the machine how much the keys have been used.
func (k *Keying) count(ctx context.Context) {
	if time.Since(k.countedAt) < countEvery {
		return
	}
	counters, err := k.cfg.Kernel.Counters(ctx)
	if err != nil {
		k.tell("counters", "cannot read the kernel's counters", err)
		return
	}
	for _, s := range counters.SAs {
		k.machine.Count(s.SA.ID(), s.Packets)
	}
	k.countedAt, k.counted = time.Now(), &counters
	if in, out, err := k.cfg.Filter.Drops(ctx); err == nil {
		k.filterIn, k.filterOut = in, out
	}
}

// unlock takes all out of the kernel, the locks last, once this node is in no encrypted network and none has a device.
func (k *Keying) unlock(ctx context.Context) error {
	k.kernel.Lock()
	defer k.kernel.Unlock()
	if !k.cleanAt.IsZero() && (!k.doubt || time.Since(k.cleanAt) < rereadEvery) {
		return nil
	}
	if err := k.look(ctx); err != nil {
		k.cleanAt = time.Now() // a kernel without XFRM has nothing to remove
		return nil
	}
	ports := map[uint16]bool{k.locked: true}
	for _, p := range k.have.Policies {
		ports[p.Port] = true
	}
	delete(ports, 0)
	var locks ipsec.State
	for port := range ports {
		locks = blocked(locks, port)
	}
	if err := k.apply(ctx, locks, nil); err != nil {
		return err
	}
	if !k.guardedAt.IsZero() && time.Since(k.guardedAt) < settleFor {
		return nil
	}
	for port := range ports {
		if used, err := k.cfg.InUse(ctx, port); used || err != nil {
			return err
		}
	}
	if err := k.apply(ctx, ipsec.State{}, nil); err != nil {
		return err
	}
	if err := k.cfg.Filter.Apply(ctx, 0); err != nil {
		k.doubt = true
		return fmt.Errorf("remove the packet filter: %w", err)
	}
	k.locked, k.cleanAt = 0, time.Now()
	return nil
}

// retract removes what this node has published, when it is in no encrypted network any more.
func (k *Keying) retract(ctx context.Context, now outlook) {
	if now.published && !k.pub.knows() {
		if _, err := k.pub.adopt(ctx, now); err != nil {
			k.tell("retract", "cannot find out what this node has published", err)
			return
		}
	}
	k.pub.publish(nil, nil)
}

// avoid notes the SPIs that another program has at this node's address: the machine then takes the next ones.
func (k *Keying) avoid(err error) {
	for _, e := range flatten(err) {
		var failed *ipsec.OpError
		if errors.As(e, &failed) && failed.Op.Verb == ipsec.AddSA && errors.Is(failed.Err, unix.EEXIST) {
			k.taken[failed.Op.SA.SPI] = true
		}
	}
}

// flatten returns the errors that were joined.
func flatten(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range j.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}
