package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/volume"
)

// stopTimeout bounds the end of one container; Docker itself gives it 10 s before it kills it.
const stopTimeout = 30 * time.Second

// A User is a container that runs and has a volume.
type User struct {
	ID, Name string
	Paused   bool
}

// UsersOf returns the containers on this node that run and have the volume.
func (e *Engine) UsersOf(ctx context.Context, name string) ([]User, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	list, err := e.api.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("volume", name))})
	if err != nil {
		return nil, fmt.Errorf("ask Docker who has volume %s: %w", name, err)
	}
	var out []User
	for _, c := range list {
		u := User{ID: c.ID, Name: c.ID[:min(len(c.ID), 12)], Paused: c.State == container.StatePaused}
		if len(c.Names) > 0 {
			u.Name = strings.TrimPrefix(c.Names[0], "/")
		}
		out = append(out, u)
	}
	return out, nil
}

// Holders returns how many containers on this node have the volume and have not ended.
func (e *Engine) Holders(ctx context.Context, name string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := filters.NewArgs(filters.Arg("volume", name))
	for _, state := range []string{container.StateCreated, container.StateRunning, container.StatePaused, container.StateRestarting,
		container.StateRemoving} {
		args.Add("status", state)
	}
	list, err := e.api.ContainerList(ctx, container.ListOptions{All: true, Filters: args})
	if err != nil {
		return 0, fmt.Errorf("ask Docker who has volume %s: %w", name, err)
	}
	return len(list), nil
}

// Activate makes sure that Docker knows a volume plugin that has a socket in its plugin directory: listing volumes makes it
// look there (moby, volume/drivers/extpoint.go, GetAllDrivers).
func (e *Engine) Activate(ctx context.Context, plugin string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	info, err := e.api.Info(ctx)
	if err != nil {
		return fmt.Errorf("ask Docker for its plugins: %w", err)
	}
	if slices.Contains(info.Plugins.Volume, plugin) {
		return nil
	}
	if _, err := e.api.VolumeList(ctx, volume.ListOptions{}); err != nil {
		return fmt.Errorf("have Docker look for volume plugins: %w", err)
	}
	return nil
}

// Suspend pauses containers, or stops them, and returns how to undo that. Those that are paused stay so. After an error what
// was done is undone.
func (e *Engine) Suspend(ctx context.Context, users []User, stop bool) (resume func(context.Context) error, err error) {
	var done []User
	resume = func(ctx context.Context) error {
		var errs []error
		for i := len(done) - 1; i >= 0; i-- {
			errs = append(errs, e.resume(ctx, done[i], stop))
		}
		return errors.Join(errs...)
	}
	for _, u := range users {
		if u.Paused {
			continue
		}
		if err := e.suspend(ctx, u, stop); err != nil {
			return nil, errors.Join(err, resume(context.WithoutCancel(ctx)))
		}
		done = append(done, u)
	}
	return resume, nil
}

func (e *Engine) suspend(ctx context.Context, u User, stop bool) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if stop {
		if err := e.api.ContainerStop(ctx, u.ID, container.StopOptions{}); err != nil {
			return fmt.Errorf("stop container %s: %w", u.Name, err)
		}
		return nil
	}
	if err := e.api.ContainerPause(ctx, u.ID); err != nil {
		return fmt.Errorf("pause container %s: %w", u.Name, err)
	}
	return nil
}

func (e *Engine) resume(ctx context.Context, u User, stopped bool) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if stopped {
		if err := e.api.ContainerStart(ctx, u.ID, container.StartOptions{}); err != nil {
			return fmt.Errorf("start container %s again: %w", u.Name, err)
		}
		return nil
	}
	if err := e.api.ContainerUnpause(ctx, u.ID); err != nil {
		return fmt.Errorf("let container %s go on: %w", u.Name, err)
	}
	return nil
}
