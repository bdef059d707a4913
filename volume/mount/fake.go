package mount

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Fake is a Mounter with servers behind it, for tests, as strict as the kernel: it mounts nothing over a mount, unmounts
// only what is mounted, and has servers that do not answer. The source of a mount up to its ":" is its server.
type Fake struct {
	mu     sync.Mutex
	mounts map[string]Mounted
	// servers that do not answer, and mounts that have gone stale.
	hung  map[string]bool
	stale map[string]bool
	// aborted are mounts whose FUSE connection was ended.
	aborted map[string]bool
	// wait makes a call of a hung server last until its context ends; else it fails at once.
	wait bool
	// log has the tasks in order.
	log []string
	// broken is a misuse that the kernel would punish.
	broken error
}

// NewFake returns a Fake on which nothing is mounted.
func NewFake() *Fake {
	return &Fake{mounts: map[string]Mounted{}, hung: map[string]bool{}, stale: map[string]bool{}, aborted: map[string]bool{}}
}

// Do implements Mounter.
func (f *Fake) Do(ctx context.Context, t Task) (Result, error) {
	f.mu.Lock()
	f.log = append(f.log, string(t.Do)+" "+filepath.Base(t.Target))
	source := f.mounts[t.Target].Source
	if t.Do == DoMount {
		source = t.Attempts[0].Source
	}
	server, _, _ := strings.Cut(source, ":")
	hung := f.hung[server] && t.Do != DoDetach && t.Do != DoAbort && !f.aborted[t.Target]
	f.mu.Unlock()
	if hung {
		if f.wait {
			<-ctx.Done()
		}
		return Result{}, fmt.Errorf("%s: %w", t.Do, ErrDeadline)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, mounted := f.mounts[t.Target]
	switch t.Do {
	case DoMount:
		return f.mount(t, mounted)
	case DoUnmount, DoDetach:
		if !mounted {
			f.broken = fmt.Errorf("%s of %s, which is not mounted", t.Do, t.Target)
		}
		delete(f.mounts, t.Target)
		delete(f.stale, t.Target)
		delete(f.aborted, t.Target)
	case DoAbort:
		f.aborted[t.Target] = mounted
	case DoProbe:
		if !mounted {
			f.broken = fmt.Errorf("probe of %s, which is not mounted", t.Target)
		}
		if f.aborted[t.Target] {
			return Result{}, Failure{Step: "statfs", Errno: unix.ENOTCONN, Text: "transport endpoint is not connected"}
		}
		if f.stale[t.Target] {
			return Result{}, Failure{Step: "statfs", Errno: unix.ESTALE, Text: "stale file handle"}
		}
	}
	return Result{Done: true}, nil
}

func (f *Fake) mount(t Task, mounted bool) (Result, error) {
	if mounted {
		f.broken = fmt.Errorf("mount over %s", t.Target)
	}
	a := t.Attempts[0]
	if a.FSType == "refused" {
		return Result{}, Failure{Step: "mount", Errno: unix.EACCES, Text: "permission denied"}
	}
	f.mounts[t.Target] = Mounted{Source: a.Source, FSType: "fuse.fake", Options: a.Data, Minor: 7}
	return Result{Done: true}, nil
}

// Mounts implements Mounter.
func (f *Fake) Mounts(dir string) (map[string]Mounted, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]Mounted{}
	for at, m := range f.mounts {
		if at == dir || strings.HasPrefix(at, dir+"/") {
			out[at] = m
		}
	}
	return out, nil
}

// Mounted says whether something is mounted at path.
func (f *Fake) Mounted(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.mounts[path]
	return ok
}

// Hang makes a server stop answering, or answer again.
func (f *Fake) Hang(server string, hung bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hung[server] = hung
}

// GoStale makes the server forget what is mounted at path.
func (f *Fake) GoStale(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stale[path] = true
}

// kernel makes what is mounted at path one of the kernel's own clients.
func (f *Fake) kernel(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.mounts[path]
	m.FSType = "ceph"
	f.mounts[path] = m
}

// Reboot forgets all mounts.
func (f *Fake) Reboot() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.mounts)
	clear(f.stale)
	clear(f.aborted)
}
