package capture

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
)

// Clock is another node's, as this one sees it.
type Clock struct {
	// Ahead is how much later it is there, give or take Uncertain.
	Ahead, Uncertain time.Duration
}

// Source is one node that captures.
type Source struct {
	Node  string
	Clock Clock
	// Read gives batches to emit until ctx ends, and then what is left; it ends soon after, or when emit fails.
	Read func(ctx context.Context, emit func(Batch) error) error
}

// Record is one frame among those of all nodes.
type Record struct {
	Packet
	// Source and Port are where it was seen: the source's number and the port's there.
	Source int
	// Time is by the clock of the node that merges.
	Time time.Time
}

// Sink takes what is merged. An error ends the capture.
type Sink interface {
	// Port tells of a new port of a source, before its first frame.
	Port(source, port int, p Port) error
	// Frame takes the next frame.
	Frame(r Record) error
	// Lost tells that frames at a port found no room.
	Lost(source, port int, n uint64)
	// Note tells what a source says of itself, or why it ended.
	Note(source int, text string)
	// Flush is called when nothing more comes at once.
	Flush() error
}

const (
	// patience is how long a silent node holds the others' frames back; held how many bytes may be held back.
	patience = 2 * time.Second
	held     = 32 << 20
	// farewell is how long nodes have to say what is left when the capture ends.
	farewell = 2 * time.Second
)

// ErrEnough is what a sink returns to end the capture as it was asked for.
var ErrEnough = errors.New("enough")

// Merge reads all sources until ctx or all of them end, and gives their frames to the sink in time order. A source that
// fails is noted and the others go on.
func Merge(ctx context.Context, sources []Source, sink Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	m := &merger{sink: sink, streams: make([]stream, len(sources))}
	type heard struct {
		source int
		batch  Batch
		ended  bool
		err    error
	}
	said, gone := make(chan heard), make(chan struct{})
	var running sync.WaitGroup
	for i, s := range sources {
		m.streams[i] = stream{ahead: s.Clock.Ahead, spoke: time.Now(), until: math.MinInt64}
		running.Go(func() {
			tell := func(h heard) error {
				select {
				case said <- h:
					return nil
				case <-gone:
					return context.Canceled
				}
			}
			err := s.Read(ctx, func(b Batch) error { return tell(heard{source: i, batch: b}) })
			_ = tell(heard{source: i, ended: true, err: err}) // nobody listens any more
		})
	}
	defer running.Wait()
	defer close(gone)
	defer cancel()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	done := ctx.Done()
	var end <-chan time.Time
	for left := len(sources); left > 0; {
		select {
		case h := <-said:
			if h.ended {
				left--
				m.end(h.source, h.err)
			} else if err := m.hear(h.source, h.batch); err != nil {
				return enough(err)
			}
		case <-tick.C:
		case <-done:
			done, end = nil, time.After(farewell)
		case <-end:
			left = 0
		}
		if err := m.tell(m.ready()); err != nil {
			return enough(err)
		}
	}
	return enough(m.tell(math.MaxInt64))
}

func enough(err error) error {
	if errors.Is(err, ErrEnough) {
		return nil
	}
	return err
}

// merger holds frames back until nothing older can come.
type merger struct {
	sink    Sink
	streams []stream
	bytes   int
}

// stream is what one source has told. Its times are by this node's clock.
type stream struct {
	ahead time.Duration
	queue []Packet
	until int64
	spoke time.Time
	ports int
	ended bool
}

func (m *merger) hear(source int, b Batch) error {
	s := &m.streams[source]
	for _, p := range b.Ports {
		if err := m.sink.Port(source, s.ports, p); err != nil {
			return err
		}
		s.ports++
	}
	for _, p := range b.Packets {
		if p.Port < 0 || p.Port >= s.ports || p.Length < len(p.Data) {
			return fmt.Errorf("a node tells of a frame at port %d of %d, with %d of %d bytes: it is of another version", p.Port, s.ports, len(p.Data), p.Length)
		}
		p.Time -= int64(s.ahead)
		s.queue = append(s.queue, p)
		m.bytes += len(p.Data)
	}
	for port, n := range b.Lost {
		m.sink.Lost(source, port, n)
	}
	if b.Note != "" {
		m.sink.Note(source, b.Note)
	}
	s.until, s.spoke = b.Until-int64(s.ahead), time.Now()
	return nil
}

func (m *merger) end(source int, err error) {
	m.streams[source].ended = true
	if err != nil && !errors.Is(err, context.Canceled) {
		m.sink.Note(source, err.Error())
	}
}

// ready is the time up to which all have spoken. Who is silent for long is not waited for.
func (m *merger) ready() int64 {
	until := int64(math.MaxInt64)
	for _, s := range m.streams {
		if !s.ended && time.Since(s.spoke) < patience {
			until = min(until, s.until)
		}
	}
	return until
}

// tell gives the frames up to a time to the sink, and the oldest ones beyond it if too much is held.
func (m *merger) tell(until int64) error {
	told := false
	for {
		first := -1
		for i, s := range m.streams {
			if len(s.queue) > 0 && (first < 0 || s.queue[0].Time < m.streams[first].queue[0].Time) {
				first = i
			}
		}
		if first < 0 || m.streams[first].queue[0].Time > until && m.bytes <= held {
			break
		}
		s := &m.streams[first]
		p := s.queue[0]
		s.queue = s.queue[1:]
		m.bytes -= len(p.Data)
		told = true
		if err := m.sink.Frame(Record{Packet: p, Source: first, Time: time.Unix(0, p.Time)}); err != nil {
			return errors.Join(err, m.sink.Flush())
		}
	}
	if !told {
		return nil
	}
	return m.sink.Flush()
}
