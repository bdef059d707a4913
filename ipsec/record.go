// Package ipsec is the pure core of encrypted networks: which keys two nodes share and when they change, which security
// associations (SAs) and policies a node's kernel should have for that, and in which order they get there. It talks to
// neither the kernel nor the store: a caller feeds it records and clock readings, carries out its operations and tells
// it which of them succeeded.
//
// Every node has a private key per epoch and publishes the public half in its Offer. For each other node it writes a
// Link: with which SAs it can receive from there, and with which it sends. A node sends with an SA only after the
// receiver's Link has named it, so no packet ever arrives for which there is no key.
package ipsec

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/netdriver/netdriver/store"
)

// Schema is the version of the records that this program writes. Others are refused.
const Schema = 1

// ErrRecord is wrapped by every error about a record that cannot be read, written or believed.
var ErrRecord = errors.New("bad encryption record")

// Identity is who a node is; all of it goes into its keys.
type Identity struct {
	// Name and ID are those of the node's record, VTEP the address that ESP comes from and goes to.
	Name string     `json:"name"`
	ID   string     `json:"id"`
	VTEP netip.Addr `json:"vtep"`
}

// Epoch is the public part of the time in which a node uses one X25519 key.
type Epoch struct {
	// Number grows with each epoch of a node; it orders them where clocks cannot.
	Number uint64 `json:"number"`
	// ID is random: an epoch of a node whose state was lost is never taken for another with the same number.
	ID     string `json:"id"`
	Public []byte `json:"public"`
	// Ciphers are what the node can and may use, the preferred one first. They are fixed for an epoch, so that both
	// ends come to the same cipher at any time.
	Ciphers []Cipher `json:"ciphers"`
	// Encap is the UDP port of ESP-in-UDP (RFC 3948); 0 means plain ESP, unless the other end wants encapsulation.
	Encap uint16 `json:"encap,omitempty"`
	// Kept: the daemon has restarted and lost the private key. SAs that exist stay in use, no new ones can be made.
	Kept bool `json:"kept,omitempty"`
}

// Offer is what a node publishes for all: its identity and its epochs, the newest last.
type Offer struct {
	Node   Identity `json:"node"`
	Epochs []Epoch  `json:"epochs"`
}

// Link is what node From tells node To about the SAs between them.
type Link struct {
	// From and To are names; FromID and ToID are the identities, so that a link to a node that was replaced is void.
	From   string `json:"from"`
	FromID string `json:"fromID"`
	To     string `json:"to"`
	ToID   string `json:"toID"`
	// Receives are the SAs that are in From's kernel for packets of To: the acknowledgement that To may use them.
	Receives []SARef `json:"receives,omitempty"`
	// Sends is the SA that From's kernel uses for packets to To; zero if they are blocked.
	Sends SARef `json:"sends,omitzero"`
}

// SARef names an SA by the ids of the epochs of its ends and by its SPI.
type SARef struct {
	Sender   string `json:"sender"`
	Receiver string `json:"receiver"`
	SPI      uint32 `json:"spi"`
}

// OfferKey and LinkKey are the keys of the records, relative to where encryption's records are: a node watches all
// offers, and of the links only those to itself. Offers are few and read by all; links are many, small and read by one.
func OfferKey(node string) string     { return "offers/" + node }
func LinkKey(to, from string) string  { return LinksPrefix(to) + from }
func LinksPrefix(to string) string    { return "links/" + to + "/" }
func (o Offer) author() (k, n string) { return OfferKey(o.Node.Name), o.Node.Name }
func (l Link) author() (k, n string)  { return LinkKey(l.To, l.From), l.From }

// Record is one of the types that Encode and Decode know.
type Record interface {
	Offer | Link
	author() (key, node string)
	check() error
}

// Signer signs as this node; Verifier says whether a node of that name made a signature. They stand on the cluster's
// certificates, so that somebody who can only reach the store or the network cannot put a key of his own there.
type Signer interface {
	Sign(message []byte) (signature []byte, err error)
}

// Verifier is Signer's other side. The error of a signature that is not the node's says why.
type Verifier interface {
	Verify(node string, message, signature []byte) error
}

// envelope is what the store keeps. Record is kept as the bytes that were signed.
type envelope struct {
	V         int    `json:"v"`
	Record    []byte `json:"r"`
	Signature []byte `json:"s"`
}

// Encode returns the bytes that the store keeps under the record's key. The error wraps ErrRecord.
func Encode[R Record](r R, s Signer) ([]byte, error) {
	key, _ := r.author()
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w %s: %v", ErrRecord, key, err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %v", ErrRecord, key, err)
	}
	sig, err := s.Sign(signed(key, b))
	if err != nil {
		return nil, fmt.Errorf("%w %s: sign: %v", ErrRecord, key, err)
	}
	return json.Marshal(envelope{Schema, b, sig})
}

// Decode reads what the store has under key. A record that is another key's or that its node has not signed is
// refused. The error wraps ErrRecord and names the key. An old record put back by somebody with access to the store
// passes; it can stop a pair's traffic, but names only keys that their owners have forgotten.
func Decode[R Record](key string, value []byte, v Verifier) (R, error) {
	var r, none R
	var e envelope
	if err := json.Unmarshal(value, &e); err != nil {
		return none, fmt.Errorf("%w %s: %v", ErrRecord, key, err)
	}
	if e.V != Schema {
		return none, fmt.Errorf("%w %s: version %d, this program knows %d; upgrade netdriver on this node",
			ErrRecord, key, e.V, Schema)
	}
	if err := json.Unmarshal(e.Record, &r); err != nil {
		return none, fmt.Errorf("%w %s: %v", ErrRecord, key, err)
	}
	own, node := r.author()
	if own != key {
		return none, fmt.Errorf("%w %s: it was written for %s", ErrRecord, key, own)
	}
	if err := v.Verify(node, signed(key, e.Record), e.Signature); err != nil {
		return none, fmt.Errorf("%w %s: not signed by node %s: %v", ErrRecord, key, node, err)
	}
	if err := r.check(); err != nil {
		return none, fmt.Errorf("%w %s: %v", ErrRecord, key, err)
	}
	return r, nil
}

// signed returns what a signature covers: the record and where it stands.
func signed(key string, record []byte) []byte {
	return append([]byte("netdriver encryption record 1\x00"+key+"\x00"), record...)
}

// publicSize is the length of an X25519 public key (RFC 7748 §5), maxOffered a bound on what a peer may cost us.
const (
	publicSize = 32
	maxOffered = 16
)

func (o Offer) check() error {
	if err := store.CheckName("node", o.Node.Name); err != nil {
		return err
	}
	if o.Node.ID == "" || !o.Node.VTEP.IsValid() {
		return errors.New("the node has no id or address")
	}
	if len(o.Epochs) == 0 || len(o.Epochs) > maxOffered {
		return fmt.Errorf("%d epochs are not within 1..%d", len(o.Epochs), maxOffered)
	}
	for i, e := range o.Epochs {
		if e.ID == "" || len(e.Public) != publicSize || i > 0 && e.Number <= o.Epochs[i-1].Number {
			return fmt.Errorf("epoch %d has no id or key, or is out of order", e.Number)
		}
		for _, c := range e.Ciphers {
			if err := CheckCipher(c); err != nil {
				return fmt.Errorf("epoch %d: %w", e.Number, err)
			}
		}
	}
	return nil
}

func (l Link) check() error {
	if err := errors.Join(store.CheckName("node", l.From), store.CheckName("node", l.To)); err != nil {
		return err
	}
	if l.FromID == "" || l.ToID == "" {
		return errors.New("an end has no id")
	}
	if len(l.Receives) > maxOffered*maxOffered {
		return fmt.Errorf("%d SAs are more than %d", len(l.Receives), maxOffered*maxOffered)
	}
	for _, r := range append(l.Receives[:len(l.Receives):len(l.Receives)], l.Sends) {
		if r != (SARef{}) && (r.Sender == "" || r.Receiver == "" || r.SPI < minSPI) {
			return fmt.Errorf("SA %#x has no epochs, or its SPI is below %d", r.SPI, minSPI)
		}
	}
	return nil
}
