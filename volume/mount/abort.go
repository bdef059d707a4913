package mount

import (
	"context"
	"errors"
	"fmt"
)

// Why Abort does nothing.
var (
	ErrNotMounted = errors.New("it is not mounted on this node: nobody waits for it")
	ErrNoFUSE     = errors.New("it is mounted by the kernel's own client, whose waiters can be killed: stop the containers that use it")
	ErrAnswers    = errors.New("its server answers: stop the containers that use it, or abort it all the same with --force")
)

// Abort ends the FUSE connection behind a volume, so that whatever waits for it gets an error: nothing else does that, since a
// reader of a daemon that is frozen ignores SIGKILL. The volume is stale from then on, until its last user is gone; its
// data on the server is as it was, but for what was not yet written. One that answers is aborted only with force.
func (e *Engine) Abort(ctx context.Context, name string, force bool) error {
	vol, unlock, err := e.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	mounts, err := e.cfg.Mounter.Mounts(e.Path(name))
	if err != nil {
		return err
	}
	m, mounted := mounts[e.Path(name)]
	switch {
	case !mounted:
		return ErrNotMounted
	case !m.FUSE():
		return fmt.Errorf("%w (%s)", ErrNoFUSE, m.FSType)
	case !force && e.probe(ctx, vol, m) == nil:
		return ErrAnswers
	}
	if _, err := e.cfg.Mounter.Do(ctx, Task{Do: DoAbort, Target: e.Path(name), Device: m.Minor}); err != nil {
		return err
	}
	e.cfg.Log.Info("volume's FUSE connection aborted", "volume", name)
	_ = e.probe(ctx, vol, m) // it is stale now, which is noted
	return nil
}
