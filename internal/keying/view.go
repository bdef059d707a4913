package keying

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

// demand is what this node's encrypted networks ask of it.
type demand struct {
	// networks are their names, sorted; empty: it is in none.
	networks []string
	port     uint16
	option   ipsec.Option
	rekey    shortest
	// peers are the other nodes in them.
	peers map[string]bool
}

// outlook is what the records say, decoded.
type outlook struct {
	// known: the store knows this node as it is. If not, nothing is changed on it.
	known bool
	// anywhere: the cluster has an encrypted network.
	anywhere bool
	// published: the store has an offer of this node.
	published bool
	demand
	nodes  map[string]store.Node
	offers map[string]ipsec.Offer
	// links are those to this node, by the name of the writer.
	links map[string]ipsec.Link
	// strays are nodes that have records of encryption here and none in the cluster.
	strays []string
	// bad are the records that cannot be believed, with the reason.
	bad map[string]error
}

// decoder turns records into an outlook. It remembers what it has verified, as long as nothing changes of what vouches for it.
type decoder struct {
	node     store.Node
	identity Identity
	vouched  string // what the last verdicts rested on
	offers   map[string]verdict[ipsec.Offer]
	links    map[string]verdict[ipsec.Link]
}

// verdict is a decoded record, or why it is none.
type verdict[R any] struct {
	modified int64
	record   R
	err      error
}

func (d *decoder) decode(records map[string]store.KV) outlook {
	o := outlook{
		nodes: map[string]store.Node{}, offers: map[string]ipsec.Offer{}, links: map[string]ipsec.Link{}, bad: map[string]error{},
	}
	for _, key := range slices.Sorted(maps.Keys(records)) {
		kv := records[key]
		switch {
		case strings.HasPrefix(key, store.NodePrefix):
			if n, err := store.Decode[store.Node](kv); err == nil {
				o.nodes[n.Name] = n
			}
		case strings.HasPrefix(key, store.NetworkPrefix):
			if nw, err := store.Decode[store.Network](kv); err == nil && nw.Encrypted {
				o.anywhere = true
				o.demand.add(nw, d.node.Name)
			}
		}
	}
	o.known = o.nodes[d.node.Name].ID == d.node.ID
	d.renew(records, o.nodes)
	verifier := d.identity.Verifier(func(key string) (store.KV, bool) { kv, ok := records[key]; return kv, ok }, o.nodes)
	for key, kv := range records {
		name, encryption := strings.CutPrefix(key, store.EncryptionPrefix)
		switch {
		case !encryption:
		case strings.HasPrefix(name, ipsec.OfferKey("")):
			o.published = o.published || name == ipsec.OfferKey(d.node.Name)
			read(d.offers, kv, name, verifier, o.bad, func(r ipsec.Offer) error {
				o.offers[r.Node.Name] = r
				return o.same(r.Node)
			})
		case strings.HasPrefix(name, ipsec.LinksPrefix(d.node.Name)):
			read(d.links, kv, name, verifier, o.bad, func(r ipsec.Link) error {
				o.links[r.From] = r
				return nil
			})
		}
	}
	for key := range records {
		rest, link := strings.CutPrefix(key, store.EncryptionPrefix+ipsec.LinksPrefix(d.node.Name))
		if _, there := o.nodes[rest]; link && !there {
			o.strays = append(o.strays, rest)
		}
	}
	for node := range o.offers {
		if o.bad[store.EncryptionPrefix+ipsec.OfferKey(node)] != nil {
			delete(o.offers, node)
		}
	}
	return o
}

// same compares what a node says of itself in its offer with its record: a node that has been removed, or has moved, has no
// offer until it writes another.
func (o outlook) same(i ipsec.Identity) error {
	n, there := o.nodes[i.Name]
	if !there || n.ID != i.ID || n.VTEP != i.VTEP {
		return fmt.Errorf("it is of a node with id %s at %s, and the cluster has %s at %s", i.ID, i.VTEP, n.ID, n.VTEP)
	}
	return nil
}

// renew forgets all verdicts if what they rested on has changed.
func (d *decoder) renew(records map[string]store.KV, nodes map[string]store.Node) {
	var b strings.Builder
	prefixes := d.identity.Prefixes()
	for _, key := range slices.Sorted(maps.Keys(records)) {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
			fmt.Fprintf(&b, "%s %d\n", key, records[key].Modified)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		fmt.Fprintf(&b, "%s %x\n", name, nodes[name].Key)
	}
	if now := b.String(); d.offers == nil || now != d.vouched {
		d.vouched, d.offers, d.links = now, map[string]verdict[ipsec.Offer]{}, map[string]verdict[ipsec.Link]{}
	}
}

// read verifies a record, unless that has been done, and takes it in.
func read[R ipsec.Record](
	known map[string]verdict[R], kv store.KV, name string, v ipsec.Verifier, bad map[string]error, take func(R) error,
) {
	have, there := known[kv.Key]
	if !there || have.modified != kv.Modified {
		have = verdict[R]{modified: kv.Modified}
		have.record, have.err = ipsec.Decode[R](name, kv.Value, v)
		known[kv.Key] = have
	}
	err := have.err
	if err == nil {
		err = take(have.record)
	}
	if err != nil {
		bad[kv.Key] = err
	}
}

// add takes in an encrypted network, if the node is in it.
func (d *demand) add(nw store.Network, node string) {
	member := func(m store.Member) bool { return m.Node == node }
	if !slices.ContainsFunc(nw.Members, member) {
		return
	}
	if d.peers == nil {
		d.peers, d.option.Encrypted = map[string]bool{}, true
	}
	d.networks = append(d.networks, nw.Name)
	if d.port == 0 {
		d.port = nw.Port
	}
	if nw.Cipher != "" && d.option.Cipher == "" {
		d.option.Cipher = ipsec.Cipher(nw.Cipher)
	}
	d.rekey.add(nw.Rekey)
	for _, m := range nw.Members {
		if m.Node != node {
			d.peers[m.Node] = true
		}
	}
}

// view is what the machine is to know: the offers of the peers and their links.
func (o outlook) view() ipsec.View {
	v := ipsec.View{Links: map[string]ipsec.Link{}}
	for _, name := range slices.Sorted(maps.Keys(o.peers)) {
		if offer, ok := o.offers[name]; ok {
			v.Offers = append(v.Offers, offer)
		}
		if l, ok := o.links[name]; ok {
			v.Links[name] = l
		}
	}
	return v
}
