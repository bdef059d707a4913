package mount

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// fake is a kernel with servers behind it, as strict as the real one: it mounts nothing over a mount, unmounts only what
// is mounted, and waits for a server that does not answer until the caller's patience ends.
type fake struct {
	mu     sync.Mutex
	mounts map[string]Mounted
	// servers that do not answer, and mounts that have gone stale.
	hung  map[string]bool
	stale map[string]bool
	// wait makes a call of a hung server last until its context ends; else it fails at once.
	wait bool
	// log has the tasks in order.
	log []string
	// broken is a misuse that the kernel would punish.
	broken error
}

func newFake() *fake {
	return &fake{mounts: map[string]Mounted{}, hung: map[string]bool{}, stale: map[string]bool{}}
}

func (f *fake) Do(ctx context.Context, t Task) (Result, error) {
	f.mu.Lock()
	f.log = append(f.log, string(t.Do)+" "+filepath.Base(t.Target))
	server := f.mounts[t.Target].Source
	if t.Do == DoMount {
		server = t.Attempts[0].Source
	}
	hung := f.hung[server] && t.Do != DoDetach && t.Do != DoAbort
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
	case DoProbe:
		if !mounted {
			f.broken = fmt.Errorf("probe of %s, which is not mounted", t.Target)
		}
		if f.stale[t.Target] {
			return Result{}, Failure{Step: "statfs", Errno: unix.ESTALE, Text: "stale file handle"}
		}
	}
	return Result{Done: true}, nil
}

func (f *fake) mount(t Task, mounted bool) (Result, error) {
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

func (f *fake) Mounts(dir string) (map[string]Mounted, error) {
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

func (f *fake) mounted(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.mounts[path]
	return ok
}

// set changes the fake's world.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}
