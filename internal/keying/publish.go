package keying

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

const (
	// storeTimeout bounds one request, retryEvery is the pause after a failed one.
	storeTimeout = 5 * time.Second
	retryEvery   = 500 * time.Millisecond
	// askEvery is how often the store is asked for a sign of life when there is nothing to write; a peer's silence counts only
	// while the last one is younger than freshFor.
	askEvery = 2 * time.Second
	freshFor = 2*askEvery + storeTimeout
	// gather is how long news wait for more: several peers may change at once.
	gather = 10 * time.Millisecond
	// batch is the number of records in one transaction.
	batch = store.MaxOps - 8
)

// publisher writes what this node has to say, so that the loop never waits for the store.
type publisher struct {
	store    store.Store
	identity Identity
	node     store.Node
	log      *slog.Logger
	// moved tells the loop that something was written.
	moved func()
	wake  chan struct{}

	mu sync.Mutex
	// offer and links are what the store should have; nil: nothing.
	offer *ipsec.Offer
	links map[string]ipsec.Link
	// written is what it has, as far as is known; nil is something that must be written anew.
	wroteOffer *ipsec.Offer
	wroteLinks map[string]*ipsec.Link
	hasOffer   bool
	answered   time.Time
	// strays are nodes without a record whose links to this node are still there.
	strays []string
	// status is what the node says of itself; nil: nothing.
	status  *store.Protection
	wrote   *store.Protection
	wroteAt time.Time
}

func newPublisher(cfg Config, moved func()) *publisher {
	return &publisher{
		store: cfg.Store, identity: cfg.Identity, node: cfg.Node, log: cfg.Log, moved: moved, wake: make(chan struct{}, 1),
		wroteLinks: map[string]*ipsec.Link{},
	}
}

// publish says what the store should have from now on.
func (p *publisher) publish(offer *ipsec.Offer, links map[string]ipsec.Link) {
	p.mu.Lock()
	p.offer, p.links = offer, links
	p.mu.Unlock()
	p.nudge()
}

func (p *publisher) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// offered returns the offer that the store has.
func (p *publisher) offered() (ipsec.Offer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wroteOffer == nil {
		return ipsec.Offer{}, false
	}
	return *p.wroteOffer, true
}

// fresh says whether the store answers.
func (p *publisher) fresh() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.answered.IsZero() && time.Since(p.answered) < freshFor
}

// knows says whether it is known what this node has published.
func (p *publisher) knows() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hasOffer
}

// doubt makes everything be written anew: somebody else has removed it.
func (p *publisher) doubt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wroteOffer, p.wrote = nil, nil
	for to := range p.wroteLinks {
		p.wroteLinks[to] = nil
	}
}

// adopt reads this node's own links, to whichever node, so that they are known and removed when they are not wanted.
func (p *publisher) adopt(ctx context.Context, now outlook) ([]ipsec.Link, error) {
	verifier := p.identity.Verifier(func(key string) (store.KV, bool) {
		kv, err := p.store.Get(ctx, key)
		return kv, err == nil
	}, now.nodes)
	var out []ipsec.Link
	found := map[string]*ipsec.Link{}
	for _, to := range slices.Sorted(maps.Keys(now.nodes)) {
		key := ipsec.LinkKey(to, p.node.Name)
		kv, err := p.store.Get(ctx, store.EncryptionPrefix+key)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found[to] = nil
		if l, err := ipsec.Decode[ipsec.Link](key, kv.Value, verifier); err == nil {
			out = append(out, l)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wroteLinks, p.wroteOffer, p.hasOffer = found, nil, true
	p.wrote = &store.Protection{}
	return out, nil
}

// clear removes the links of nodes that are not in the cluster any more: what they wrote at the last moment.
func (p *publisher) clear(strays []string) {
	p.mu.Lock()
	p.strays = strays
	p.mu.Unlock()
}

// sweep removes one after the other, unless the node has come back.
func (p *publisher) sweep(ctx context.Context) error {
	p.mu.Lock()
	strays := p.strays
	p.mu.Unlock()
	for _, from := range strays {
		_, err := p.store.Commit(ctx, []store.Cond{store.Absent(store.NodeKey(from))},
			store.Delete(store.EncryptionPrefix+ipsec.LinkKey(p.node.Name, from)),
			store.Delete(store.EncryptionPrefix+ipsec.OfferKey(from)), store.Delete(store.ProtectionKey(from)))
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return nil
}

// run writes until ctx ends.
func (p *publisher) run(ctx context.Context) {
	for {
		pause := askEvery
		if err := p.write(ctx); err != nil {
			p.log.Debug("cannot publish keys", "error", err)
			pause = retryEvery
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-p.wake:
			timer.Stop()
			select {
			case <-ctx.Done():
				return
			case <-time.After(gather):
			}
		case <-timer.C:
		}
	}
}

// write writes what is missing, or asks the store for a sign of life.
func (p *publisher) write(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	for {
		ops, confirm, err := p.next()
		if err != nil {
			return err
		}
		if len(ops) == 0 {
			break
		}
		// A node that was removed must not come back by what its daemon still writes.
		cond := []store.Cond{store.Exists(store.NodeKey(p.node.Name))}
		if _, err := p.store.Commit(ctx, cond, ops...); err != nil {
			return err
		}
		p.mu.Lock()
		confirm()
		p.answered = time.Now()
		p.mu.Unlock()
		p.moved()
	}
	if err := p.sweep(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	silent := time.Since(p.answered) >= askEvery-gather
	p.mu.Unlock()
	if !silent {
		return nil
	}
	if _, err := p.store.Get(ctx, store.NodeKey(p.node.Name)); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	p.mu.Lock()
	p.answered = time.Now()
	p.mu.Unlock()
	return nil
}

// next returns a transaction that brings the store nearer to what it should have, and what to note once it is done. The offer
// comes first: links name its epochs.
func (p *publisher) next() (ops []store.Op, confirm func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var after []func()
	add := func(op store.Op, done func()) { ops, after = append(ops, op), append(after, done) }
	if err := p.nextOffer(add); err != nil {
		return nil, nil, err
	}
	for _, to := range slices.Sorted(maps.Keys(p.links)) {
		want := p.links[to]
		if have := p.wroteLinks[to]; len(ops) >= batch || have != nil && reflect.DeepEqual(*have, want) {
			continue
		}
		text, err := ipsec.Encode(want, p.identity)
		if err != nil {
			return nil, nil, err
		}
		add(store.Put(store.EncryptionPrefix+ipsec.LinkKey(to, p.node.Name), text), func() { p.wroteLinks[to] = &want })
	}
	for _, to := range slices.Sorted(maps.Keys(p.wroteLinks)) {
		if _, wanted := p.links[to]; !wanted && len(ops) < batch {
			add(store.Delete(store.EncryptionPrefix+ipsec.LinkKey(to, p.node.Name)), func() { delete(p.wroteLinks, to) })
		}
	}
	p.nextStatus(add)
	return ops, func() {
		for _, f := range after {
			f()
		}
	}, nil
}

func (p *publisher) nextOffer(add func(store.Op, func())) error {
	key := store.EncryptionPrefix + ipsec.OfferKey(p.node.Name)
	if p.offer == nil {
		if p.hasOffer {
			add(store.Delete(key), func() { p.wroteOffer, p.hasOffer = nil, false })
		}
		return nil
	}
	want := *p.offer
	if len(want.Epochs) == 0 || p.wroteOffer != nil && reflect.DeepEqual(*p.wroteOffer, want) {
		return nil
	}
	text, err := ipsec.Encode(want, p.identity)
	if err != nil {
		return err
	}
	add(store.Put(key, text), func() { p.wroteOffer, p.hasOffer = &want, true })
	return nil
}
