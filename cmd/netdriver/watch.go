package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// The bounds of --watch: looking takes the daemon some milliseconds.
const (
	watchLeast   = 500 * time.Millisecond
	watchDefault = "2s"
)

// screen writes each text over the one before, if it is a terminal and told to.
type screen struct {
	io.Writer
	over bool
}

// Write implements io.Writer. Every report is one text (ECMA-48: CUP, EL and ED).
func (s *screen) Write(b []byte) (int, error) {
	if !s.over {
		return s.Writer.Write(b)
	}
	text := append([]byte("\x1b[H"), bytes.ReplaceAll(b, []byte("\n"), []byte("\x1b[K\n"))...)
	if _, err := s.Writer.Write(append(text, "\x1b[J"...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// watching gives a verb the flag --watch: it looks again and again until its context ends, and ends with the last verdict.
// The verb writes to s.
func (a app) watching(cmd *cobra.Command, s *screen, once func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	every := cmd.Flags().Duration("watch", 0, "look again after this `time` until Ctrl-C, "+watchDefault+" if none is given (--watch=5s)")
	cmd.Flags().Lookup("watch").NoOptDefVal = watchDefault
	return func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("watch") {
			return once(cmd, args)
		}
		if *every < watchLeast {
			return cannotTell(fmt.Errorf("--watch %s: want %s or more", *every, watchLeast))
		}
		s.over = terminal(s.Writer)
		for last := error(nil); ; {
			err := once(cmd, args)
			if cmd.Context().Err() != nil {
				return last
			}
			last = err
			var told status
			if errors.As(err, &told) && told.err != nil { // it may be known again at the next look
				fmt.Fprintf(s, "netdriver: %v\n", told.err)
				last = status{code: told.code}
			}
			select {
			case <-cmd.Context().Done():
				return last
			case <-time.After(*every):
			}
		}
	}
}
