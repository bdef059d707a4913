package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Entry is what this node knows of one volume in use. It is a value: its methods return changed copies.
type Entry struct {
	Name string `json:"name"`
	// Boot is the kernel's boot id: after a reboot nothing is mounted and nobody uses anything.
	Boot string `json:"boot"`
	// Server is the lane of the mount.
	Server string `json:"server"`
	// Options tells mounts of other options apart; it is compared only.
	Options string `json:"options"`
	// Label is the attempt that succeeded, such as "NFS 4.2".
	Label string    `json:"label,omitempty"`
	Since time.Time `json:"since"`
	// IDs are Docker's mount ids: a set, since calls are repeated.
	IDs []string `json:"ids"`
}

// with returns e with a user more.
func (e Entry) with(id string) Entry {
	if !slices.Contains(e.IDs, id) {
		e.IDs = append(slices.Clone(e.IDs), id)
		slices.Sort(e.IDs)
	}
	return e
}

// without returns e with a user less.
func (e Entry) without(id string) Entry {
	e.IDs = slices.DeleteFunc(slices.Clone(e.IDs), func(have string) bool { return have == id })
	return e
}

// usedBy says who uses the volume besides id.
func (e Entry) usedBy(id string) []string { return e.without(id).IDs }

// journal keeps entries in files, one per volume, each written whole or not at all. It is what a fresh daemon knows of
// its predecessor's mounts.
type journal struct{ dir string }

const journalSuffix = ".json"

// read returns all entries. A file that cannot be read is an error: guessing could take a volume from a container.
func (j journal) read() (map[string]Entry, error) {
	files, err := os.ReadDir(j.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]Entry{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journal of mounts: %w", err)
	}
	out := map[string]Entry{}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), journalSuffix) || strings.HasPrefix(f.Name(), ".") {
			continue
		}
		path := filepath.Join(j.dir, f.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("journal of mounts: %w", err)
		}
		var e Entry
		if err := json.Unmarshal(text, &e); err != nil || e.Name+journalSuffix != f.Name() {
			return nil, fmt.Errorf("journal of mounts: %s is damaged (%w): move it away; the volume stays mounted until its "+
				"containers are started again", path, err)
		}
		out[e.Name] = e
	}
	return out, nil
}

// write keeps e, or forgets it when nobody uses it.
func (j journal) write(e Entry) error {
	path := filepath.Join(j.dir, e.Name+journalSuffix)
	if len(e.IDs) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("journal of mounts: %w", err)
		}
		return nil
	}
	text, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("journal of mounts: %w", err)
	}
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return fmt.Errorf("journal of mounts: %w", err)
	}
	f, err := os.CreateTemp(j.dir, ".new")
	if err != nil {
		return fmt.Errorf("journal of mounts: %w", err)
	}
	defer os.Remove(f.Name()) // gone once renamed
	_, err = f.Write(text)
	// Without a sync: what a power failure loses, the reboot has unmounted.
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("journal of mounts: %w", err)
	}
	return nil
}

// bootID returns the kernel's random identity of this boot (man 4 random).
func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}
