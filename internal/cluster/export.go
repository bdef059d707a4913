package cluster

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/netdriver/netdriver/store"
)

// A backup is lines of JSON: a header, one line per record, and a footer with the SHA-256 of all lines before it. It
// has what a cluster is, whatever etcd it is in; not who is alive, and nothing secret.
const (
	backupFormat  = "netdriver backup"
	backupVersion = 1
	// maxRecord is the longest line in bytes: etcd's own limit for a request is 1.5 MiB, base64 makes it 2.
	maxRecord = 4 << 20
)

type backupHeader struct {
	Format   string    `json:"format"`
	V        int       `json:"v"`
	Revision int64     `json:"revision"`
	Node     string    `json:"node"`
	Taken    time.Time `json:"taken"`
}

type backupRecord struct {
	Key   string `json:"k"`
	Value []byte `json:"v"`
}

type backupFooter struct {
	Records int    `json:"records"`
	SHA256  string `json:"sha256"`
}

// fleeting says whether a record tells of the moment, or of this store's own members, and is no part of a backup.
func fleeting(key string) bool {
	for _, prefix := range []string{store.AlivePrefix, store.StatusPrefix, store.TokenPrefix, store.ClusterGrowing,
		store.EncryptionPrefix} {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// Backup writes all records of one revision.
func Backup(ctx context.Context, s store.Store, node string, now time.Time, w io.Writer) error {
	kvs, revision, err := s.List(ctx, "")
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := bufio.NewWriter(io.MultiWriter(w, sum))
	lines := json.NewEncoder(out)
	if err := lines.Encode(backupHeader{backupFormat, backupVersion, revision, node, now.UTC()}); err != nil {
		return err
	}
	n := 0
	for _, kv := range kvs {
		if fleeting(kv.Key) {
			continue
		}
		if err := lines.Encode(backupRecord{kv.Key, kv.Value}); err != nil {
			return err
		}
		n++
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(backupFooter{n, hex.EncodeToString(sum.Sum(nil))})
}

// ErrBackup is wrapped by the error of what is no whole backup.
var ErrBackup = errors.New("no whole backup of `netdriver cluster backup`")

// readBackup reads and checks all of a backup.
func readBackup(r io.Reader) ([]backupRecord, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxRecord)
	sum := sha256.New()
	var header backupHeader
	if err := next(lines, sum, &header); err != nil {
		return nil, err
	}
	if header.Format != backupFormat || header.V != backupVersion {
		return nil, fmt.Errorf("%w: format %q, version %d; this program reads version %d",
			ErrBackup, header.Format, header.V, backupVersion)
	}
	var records []backupRecord
	named := map[string]bool{}
	for lines.Scan() {
		line := lines.Bytes()
		var footer backupFooter
		if err := json.Unmarshal(line, &footer); err == nil && footer.SHA256 != "" {
			if lines.Scan() {
				return nil, fmt.Errorf("%w: something follows its end", ErrBackup)
			}
			if got := hex.EncodeToString(sum.Sum(nil)); got != footer.SHA256 || footer.Records != len(records) {
				return nil, fmt.Errorf("%w: it was changed or cut: %d records with SHA-256 %s, its end says %d with %s",
					ErrBackup, len(records), got, footer.Records, footer.SHA256)
			}
			return records, nil
		}
		sum.Write(line)
		sum.Write([]byte{'\n'})
		var rec backupRecord
		if err := json.Unmarshal(line, &rec); err != nil {
			return nil, fmt.Errorf("%w: record %d: %w", ErrBackup, len(records)+1, err)
		}
		if rec.Key == "" || named[rec.Key] {
			return nil, fmt.Errorf("%w: record %d has the key %q, which is empty or another's", ErrBackup, len(records)+1,
				rec.Key)
		}
		named[rec.Key] = true
		records = append(records, rec)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: after %d records: %w", ErrBackup, len(records), err)
	}
	return nil, fmt.Errorf("%w: its end is missing after %d records", ErrBackup, len(records))
}

func next(lines *bufio.Scanner, sum hash.Hash, into any) error {
	if !lines.Scan() {
		return errors.Join(fmt.Errorf("%w: it is empty", ErrBackup), lines.Err())
	}
	sum.Write(lines.Bytes())
	sum.Write([]byte{'\n'})
	if err := json.Unmarshal(lines.Bytes(), into); err != nil {
		return fmt.Errorf("%w: %w", ErrBackup, err)
	}
	return nil
}

// Restore makes a store have what a backup has, once all of it has been read and checked. A store that has networks
// already is refused unless force is set; then what is not in the backup goes. It can be repeated. It returns how many
// records were written.
func Restore(ctx context.Context, s store.Store, r io.Reader, force bool) (int, error) {
	records, err := readBackup(r)
	if err != nil {
		return 0, err
	}
	n, err := s.Count(ctx, store.NetworkPrefix)
	if err != nil {
		return 0, err
	}
	if n > 0 && !force {
		return 0, fmt.Errorf("the store has %d networks: restore into an empty one, or replace them with --force", n)
	}
	have, _, err := s.List(ctx, "")
	if err != nil {
		return 0, err
	}
	wanted := map[string]bool{}
	var ops []store.Op
	for _, rec := range records {
		wanted[rec.Key] = true
		if !fleeting(rec.Key) {
			ops = append(ops, store.Put(rec.Key, rec.Value))
		}
	}
	for _, kv := range have {
		// Nodes that are in the cluster now stay, with their certificates, and what is refused stays refused.
		keep := wanted[kv.Key] || fleeting(kv.Key) || strings.HasPrefix(kv.Key, store.NodePrefix) ||
			strings.HasPrefix(kv.Key, store.CertificatePrefix) || strings.HasPrefix(kv.Key, store.RevokedPrefix)
		if !keep {
			ops = append(ops, store.Delete(kv.Key))
		}
	}
	for len(ops) > 0 {
		n := fitting(ops)
		if _, err := s.Commit(ctx, nil, ops[:n]...); err != nil {
			return 0, fmt.Errorf("restore: %w; run it again", err)
		}
		ops = ops[n:]
	}
	return len(records), nil
}

// fitting returns how many of the first operations fit into one transaction: at least one.
func fitting(ops []store.Op) int {
	size := 0
	for i, o := range ops[:min(len(ops), store.MaxOps)] {
		if size += len(o.Key) + len(o.Value); i > 0 && size > store.MaxRequest {
			return i
		}
	}
	return min(len(ops), store.MaxOps)
}
