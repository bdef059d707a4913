package cluster

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"time"

	"github.com/netdriver/netdriver/store"
)

// ErrDenied says that a node may not join, or that its certificate is refused.
var ErrDenied = errors.New("refused by the cluster")

// tokenRecord is what the store has of a token: whoever reads the store cannot join with it.
type tokenRecord struct {
	Hash    []byte    `json:"hash"`
	Expires time.Time `json:"expires"`
	Creator string    `json:"creator"`
}

// signer is what a member does for others: it makes tokens and signs certificates.
type signer struct {
	store     store.Store
	authority *Authority
	now       func() time.Time
}

// token makes a token that lets nodes join at the endpoints for some time.
func (s *signer) token(
	ctx context.Context, creator string, endpoints []netip.AddrPort, life time.Duration,
) (Token, error) {
	t, err := newToken(s.authority, endpoints, s.now().Add(life))
	if err != nil {
		return t, err
	}
	hash := sha256.Sum256(t.Secret)
	record, err := json.Marshal(tokenRecord{Hash: hash[:], Expires: t.Expires, Creator: creator})
	if err != nil {
		return t, err
	}
	_, err = s.store.Commit(ctx, []store.Cond{store.Absent(store.TokenKey(t.ID))}, store.Put(store.TokenKey(t.ID), record))
	return t, err
}

// admit says whether a token's id and secret let a node join.
func (s *signer) admit(ctx context.Context, id string, secret []byte) error {
	if err := store.CheckID("token", id); err != nil {
		return fmt.Errorf("%w: %w", ErrDenied, err)
	}
	kv, err := s.store.Get(ctx, store.TokenKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: there is no such token, or it was revoked; make one with `netdriver cluster token`", ErrDenied)
	}
	if err != nil {
		return err
	}
	var r tokenRecord
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return fmt.Errorf("token %s: %w", id, err)
	}
	hash := sha256.Sum256(secret)
	switch {
	case subtle.ConstantTimeCompare(hash[:], r.Hash) != 1:
		return fmt.Errorf("%w: the token's secret is wrong; copy the whole line of `netdriver cluster token`", ErrDenied)
	case s.now().After(r.Expires):
		return fmt.Errorf("%w: the token has expired at %s; make one with `netdriver cluster token`",
			ErrDenied, r.Expires.Format(time.RFC3339))
	}
	return nil
}

// sign signs a node's certificate and records it, so that it can be revoked. A name whose node is alive is another
// node's.
func (s *signer) sign(ctx context.Context, request []byte, node string, addr netip.Addr) ([]byte, error) {
	certificate, err := s.authority.Sign(request, node, addr, s.now())
	if err != nil {
		return nil, err
	}
	c, err := parseCertificate(certificate)
	if err != nil {
		return nil, err
	}
	if _, err := s.store.Commit(ctx, nil, store.Put(store.CertificateKey(node, serial(c)), certificate)); err != nil {
		return nil, fmt.Errorf("record the certificate of node %s: %w", node, err)
	}
	return certificate, nil
}

// nameFree says whether a new node can have a name and an address.
func (s *signer) nameFree(ctx context.Context, id, node string, addr netip.Addr) error {
	nodes, _, err := s.store.List(ctx, store.NodePrefix)
	if err != nil {
		return err
	}
	for _, kv := range nodes {
		n, err := store.Decode[store.Node](kv)
		if err != nil || n.ID == id || n.Name != node && n.VTEP != addr {
			continue
		}
		if _, err := s.store.Get(ctx, store.AliveKey(n.Name)); err == nil {
			return fmt.Errorf("%w: node %s at %s is in the cluster and alive; give this one another name with --node, or "+
				"another address",
				ErrDenied, n.Name, n.VTEP)
		}
	}
	return nil
}

// revoked returns the serial numbers of the certificates that are refused, in hexadecimal digits.
func revoked(ctx context.Context, s store.Store) (map[string]bool, error) {
	kvs, _, err := s.List(ctx, store.RevokedPrefix)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, kv := range kvs {
		out[strings.TrimPrefix(kv.Key, store.RevokedPrefix)] = true
	}
	return out, nil
}

// crl is the list of revoked certificates for the store's own TLS.
func (s *signer) crl(ctx context.Context) ([]byte, error) {
	refused, err := revoked(ctx, s.store)
	if err != nil {
		return nil, err
	}
	var serials []*big.Int
	for text := range refused {
		if n, ok := new(big.Int).SetString(text, 16); ok {
			serials = append(serials, n)
		}
	}
	return s.authority.Revoke(serials, s.now().UnixNano(), s.now())
}

func serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// nonce is a random text for names that must not be guessed.
func nonce() string { return strings.ToLower(rand.Text()) }
