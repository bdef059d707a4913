package cluster

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// The roles of a node in its cluster.
const (
	RoleMember = "member" // it has a member of the store, and the authority's key
	RoleClient = "client" // it uses the store of the members
)

// State is what a node knows of its cluster, kept in its data directory. It is written last of all files of a change,
// and at once: with it the change is made, without it nothing has happened.
type State struct {
	V int `json:"v"`
	// Role is RoleMember or RoleClient.
	Role string `json:"role"`
	// Address is this node's, at which it serves others.
	Address netip.Addr `json:"address"`
	// Ports are those of all members, fixed at init.
	Ports Ports `json:"ports"`
	// Members are the addresses of the store's members that were known last. A client reaches the store through them.
	Members []netip.Addr `json:"members"`
	// Initial is etcd's --initial-cluster of a member that joins an existing store; empty for the first one.
	Initial string `json:"initial,omitempty"`
	// Store is the name of the member's directory in the data directory.
	Store string `json:"store,omitempty"`
}

// Ports are the TCP ports of members.
type Ports struct {
	Store uint16 `json:"store"` // nodes to members: etcd's clients
	Peer  uint16 `json:"peer"`  // member to member: etcd's peers
	Join  uint16 `json:"join"`  // nodes that join or renew their certificate
}

// DefaultPorts are etcd's registered ones (IANA) and one of the unassigned next to VXLAN's.
func DefaultPorts() Ports { return Ports{Store: 2379, Peer: 2380, Join: 4791} }

// stateVersion is the version of State that this program writes and reads.
const stateVersion = 1

// Files are a node's files of its cluster.
type Files struct{ dir string }

// FilesIn returns the files in a data directory, whether they exist or not.
func FilesIn(dataDir string) Files { return Files{filepath.Join(dataDir, "cluster")} }

// CA, Cert and Key are the authority's certificate and this node's certificate with its key; CRL lists the revoked
// certificates. All but the list, which is DER, are PEM.
func (f Files) CA() string   { return filepath.Join(f.dir, "ca.pem") }
func (f Files) Cert() string { return filepath.Join(f.dir, "node.pem") }
func (f Files) Key() string  { return filepath.Join(f.dir, "node-key.pem") }
func (f Files) CRL() string  { return filepath.Join(f.dir, "revoked.crl") }

func (f Files) caKey() string { return filepath.Join(f.dir, "ca-key.pem") }
func (f Files) state() string { return filepath.Join(f.dir, "state.json") }

// State returns what the node knows of its cluster; nil if it is in none.
func (f Files) State() (*State, error) {
	text, err := os.ReadFile(f.state())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state of the cluster: %w", err)
	}
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("state of the cluster in %s: %w; restore the file, or remove %s and join again", f.state(),
			err, f.dir)
	}
	if s.V != stateVersion || s.Role != RoleMember && s.Role != RoleClient || !s.Address.IsValid() {
		return nil, fmt.Errorf("state of the cluster in %s: version %d, role %q, address %s: this program knows version %d; "+
			"upgrade it, or remove %s and join again", f.state(), s.V, s.Role, s.Address, stateVersion, f.dir)
	}
	return &s, nil
}

// save writes the state.
func (f Files) save(s State) error {
	s.V = stateVersion
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return f.write(f.state(), append(text, '\n'))
}

// write writes a file that only root can read, whole or not at all, also when the power fails. It is written in its own
// directory: some are secret, and another directory is not this one's to trust.
func (f Files) write(path string, text []byte) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("files of the cluster: %w", err)
	}
	if err := renameio.WriteFile(path, text, 0o600, renameio.WithTempDir(f.dir)); err != nil {
		return fmt.Errorf("files of the cluster: %w", err)
	}
	return nil
}

// authority returns the cluster's authority with its key, which members have.
func (f Files) authority() (*Authority, error) {
	certificate, err := os.ReadFile(f.CA())
	if err != nil {
		return nil, fmt.Errorf("the cluster's authority: %w", err)
	}
	key, err := os.ReadFile(f.caKey())
	if err != nil {
		return nil, fmt.Errorf("key of the cluster's authority: %w", err)
	}
	return ParseAuthority(certificate, key)
}

// Remove forgets the cluster. The state goes first: what is left without it is nothing.
func (f Files) Remove() error {
	if err := os.Remove(f.state()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(f.dir)
}

// listed returns the serial numbers in this member's list of refused certificates.
func listed(f Files) (map[string]bool, error) {
	text, err := os.ReadFile(f.CRL())
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(text)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, e := range list.RevokedCertificateEntries {
		out[e.SerialNumber.Text(16)] = true
	}
	return out, nil
}
