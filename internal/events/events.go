// Package events keeps what has happened on a node: who tried what and was refused, what was repaired. It is a ring on
// disk, so that it can be read when no daemon runs; nothing acts on it.
package events

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The kinds of event.
const (
	Spoofed = "spoofed" // a container sent with an address that is not its own
	Denied  = "denied"  // no rule of the network allows what it sent
	// Repaired: something else had changed what is netdriver's, or to repair it failed.
	Repaired = "repaired"
	// Refused: a call of Docker's was answered with an error.
	Refused = "refused"
	// Captured: another node asked for the frames of a network's containers here.
	Captured = "captured"
	// Notice is about netdriver itself.
	Notice = "notice"
)

// Event is one thing that happened. Fields that mean nothing to its kind are empty.
type Event struct {
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	// Network and Endpoint are where; Container is the endpoint's, if its name is known.
	Network   string `json:"network,omitempty"`
	Endpoint  string `json:"endpoint,omitempty"`
	Container string `json:"container,omitempty"`
	// Peer is the container, or the endpoint, that it is about as well: whoever sent what was denied.
	Peer string `json:"peer,omitempty"`
	// Text says what, in a few words.
	Text string `json:"text"`
	// Count is how many were alike since the last such event, this one included.
	Count int `json:"count"`
}

const (
	// half is the size in bytes at which the file is put aside; the one put aside before goes. So 1 to 2 MB are kept.
	half = 1 << 20
	// quiet is how long events that are alike are only counted after one was written.
	quiet = 10 * time.Second
	// mostAlike bounds how many are told apart in that time; what is beyond it is not written.
	mostAlike = 1024
)

// current and older are the ring's files in its directory.
const (
	current = "events.jsonl"
	older   = "events.1.jsonl"
)

// Dir is where a data directory has the ring.
func Dir(dataDir string) string { return filepath.Join(dataDir, "events") }

// Ring writes events. All methods may be called concurrently.
type Ring struct {
	dir string
	now func() time.Time

	mu    sync.Mutex
	alike map[Event]*seen
}

// seen is what is known of events that are alike.
type seen struct {
	written time.Time
	more    int
}

// New returns the ring in a directory, which is made when the first event is written.
func New(dir string, now func() time.Time) *Ring {
	return &Ring{dir: dir, now: now, alike: map[Event]*seen{}}
}

// Add writes e, with the time. If one like it was written a moment ago it is counted only, and the next one says so.
func (r *Ring) Add(e Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	e.Time, e.Count = time.Time{}, 0
	s := r.alike[e]
	switch {
	case s == nil && len(r.alike) >= mostAlike:
		for k, old := range r.alike {
			if now.Sub(old.written) >= quiet {
				delete(r.alike, k)
			}
		}
		if len(r.alike) >= mostAlike {
			return nil
		}
		fallthrough
	case s == nil:
		s = &seen{}
		r.alike[e] = s
	case now.Sub(s.written) < quiet:
		s.more++
		return nil
	}
	e.Time, e.Count = now.UTC(), s.more+1
	s.written, s.more = now, 0
	return r.write(e)
}

func (r *Ring) write(e Event) error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("keep events: %w", err)
	}
	name := filepath.Join(r.dir, current)
	if st, err := os.Stat(name); err == nil && st.Size() >= half {
		if err := os.Rename(name, filepath.Join(r.dir, older)); err != nil {
			return fmt.Errorf("put the older events aside: %w", err)
		}
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("keep events: %w", err)
	}
	line, err := json.Marshal(e)
	if err == nil {
		_, err = f.Write(append(line, '\n')) // one write: a reader sees a whole line or none of it
	}
	return errors.Join(err, f.Close())
}

// Read calls f with all events that are kept, oldest first. A line that cannot be read (a host's power failed while it was
// written) is left out.
func Read(dir string, f func(Event) error) error {
	for _, name := range []string{older, current} {
		file, err := open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(rest(file, f), file.Close()); file != nil && err != nil {
			return err
		}
	}
	return nil
}

// lines reads whole lines and returns how many bytes they have.
func lines(r io.Reader, f func(Event) error) (n int64, err error) {
	b := bufio.NewReader(r)
	for {
		line, err := b.ReadBytes('\n')
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("read events: %w", err)
		}
		n += int64(len(line))
		var e Event
		if json.Unmarshal(line, &e) == nil {
			if err := f(e); err != nil {
				return n, err
			}
		}
	}
}

// followEvery is how often a follower looks.
const followEvery = 200 * time.Millisecond

// Follow calls f with all events, and with new ones as they come, until ctx ends. Of more than a ring full between two
// looks the oldest are missed.
func Follow(ctx context.Context, dir string, f func(Event) error) error {
	name := filepath.Join(dir, current)
	file, err := open(name)
	if err != nil {
		return err
	}
	defer func() { file.Close() }()
	if err := readOlder(dir, file, f); err != nil {
		return err
	}
	for {
		// The file that is followed is open: what was written to it before it was put aside is read all the same.
		next, err := open(name)
		if err != nil {
			return err
		}
		if err := rest(file, f); err != nil {
			return errors.Join(err, next.Close())
		}
		if same(file, next) {
			next.Close()
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(followEvery):
			}
			continue
		}
		file.Close()
		file = next
	}
}

// open opens a file of events; nil if there is none.
func open(name string) (*os.File, error) {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return file, nil
}

// readOlder reads what was put aside, unless that is the file that is followed.
func readOlder(dir string, followed *os.File, f func(Event) error) error {
	file, err := open(filepath.Join(dir, older))
	if err != nil {
		return err
	}
	defer file.Close()
	if same(file, followed) {
		return nil
	}
	return rest(file, f)
}

// rest reads whole lines from where a file was read last, and stays before one that is not whole yet.
func rest(file *os.File, f func(Event) error) error {
	if file == nil {
		return nil
	}
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	n, err := lines(file, f)
	if err != nil {
		return err
	}
	_, err = file.Seek(at+n, io.SeekStart)
	return err
}

func same(a, b *os.File) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, err := a.Stat()
	y, err2 := b.Stat()
	return err == nil && err2 == nil && os.SameFile(x, y)
}
