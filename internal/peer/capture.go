package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/netdriver/netdriver/internal/capture"
	"github.com/netdriver/netdriver/store"
)

// A capture: the asker writes its request, and "clock" as often as it likes, which the node answers with the time; then
// "go". From there on the node writes batches, until the asker says "stop" or its connection ends.

const (
	// clockTries is how often a node is asked for its time: the quickest answer tells most.
	clockTries = 5
	// stalled is how long a node waits for an asker that takes nothing: its host has died, or it hangs.
	stalled = 10 * time.Second
	// farewell is how long an asker waits for a node's last batches.
	farewell = time.Second
)

// capture answers a question until the asker goes.
func (s Server) capture(ctx context.Context, conn *tls.Conn, in *json.Decoder, q capture.Question) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	write := func(m message) error {
		if err := conn.SetWriteDeadline(time.Now().Add(stalled)); err != nil {
			return err
		}
		return json.NewEncoder(conn).Encode(m)
	}
	if s.Captures == nil {
		return write(message{Error: "it lets no other node capture (its setting answer-captures)"})
	}
	if err := q.Check(); err != nil {
		return write(message{Error: err.Error()})
	}
	if err := conn.SetReadDeadline(time.Now().Add(exchangeTimeout)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		var m message
		if err := in.Decode(&m); err != nil {
			return err
		}
		if m.Go {
			break
		}
		now := time.Now()
		if err := write(message{Clock: &now}); err != nil {
			return err
		}
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { // what the asker writes now means that it has enough, and so does the end of its connection
		defer close(ended)
		var m message
		_ = in.Decode(&m)
		cancel()
	}()
	if s.Captured != nil {
		s.Captured(conn.ConnectionState().PeerCertificates[0].Subject.CommonName, q)
	}
	err := s.Captures.Run(ctx, q, func(b capture.Batch) error { return write(message{Batch: &b}) })
	if err != nil {
		_ = write(message{Error: err.Error()}) // if the asker is still there
	}
	conn.Close()
	<-ended
	return err
}

// Capture asks a node for frames. The connection ends with ctx, or when the source has been read.
func (c Client) Capture(ctx context.Context, node store.Node, q capture.Question) (capture.Source, error) {
	conn, err := c.dial(ctx, node)
	if err != nil {
		return capture.Source{}, err
	}
	halt := func() { // the node may say what is left, as long as it is waited for
		_ = conn.SetDeadline(time.Now().Add(farewell))
		_ = json.NewEncoder(conn).Encode(message{Stop: true})
	}
	stop := context.AfterFunc(ctx, halt)
	in := json.NewDecoder(conn)
	s := capture.Source{Node: node.Name}
	if s.Clock, err = begin(conn, in, q); err != nil {
		stop()
		conn.Close()
		return s, fmt.Errorf("the daemon of %s: %w", node.Name, err)
	}
	s.Read = func(ctx context.Context, emit func(capture.Batch) error) error {
		defer conn.Close()
		defer stop()
		defer context.AfterFunc(ctx, halt)()
		if err := json.NewEncoder(conn).Encode(message{Go: true}); err != nil {
			return fmt.Errorf("the daemon of %s: %w", node.Name, err)
		}
		for {
			var m message
			err := in.Decode(&m)
			switch {
			case err != nil && ctx.Err() != nil:
				return nil
			case err != nil:
				return fmt.Errorf("the daemon of %s does not answer any more: %w", node.Name, err)
			case m.Error != "":
				return fmt.Errorf("the daemon of %s: %s", node.Name, m.Error)
			case m.Batch != nil:
				if err := emit(*m.Batch); err != nil {
					return err
				}
			}
		}
	}
	return s, nil
}

// begin puts the question and compares the clocks.
func begin(conn net.Conn, in *json.Decoder, q capture.Question) (capture.Clock, error) {
	if err := conn.SetDeadline(time.Now().Add(exchangeTimeout)); err != nil {
		return capture.Clock{}, err
	}
	out := json.NewEncoder(conn)
	if err := out.Encode(request{Capture: &q}); err != nil {
		return capture.Clock{}, err
	}
	var best capture.Clock
	for i := range clockTries {
		sent := time.Now()
		unsent := out.Encode(message{Clock: &sent}) // a node that refuses may have hung up, and its reason is there to read
		var m message
		if err := in.Decode(&m); err != nil {
			return best, fmt.Errorf("it did not answer: %w", errors.Join(unsent, err))
		}
		if m.Clock == nil {
			return best, fmt.Errorf("it refuses: %s", m.Error)
		}
		took := time.Since(sent)
		if i == 0 || took/2 < best.Uncertain {
			best = capture.Clock{Ahead: m.Clock.Sub(sent.Add(took / 2).Round(0)), Uncertain: took / 2}
		}
	}
	if best.Ahead.Abs() <= best.Uncertain {
		best.Ahead = 0 // as far as can be told they agree, and a correction would only mix up what is in order
	}
	return best, conn.SetDeadline(time.Time{})
}
