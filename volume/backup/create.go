// Package backup writes a volume to an archive and back. An archive is a pax tar, compressed with zstd, that plain
// `tar --zstd --xattrs` reads: it has owners, modes, times, extended attributes with ACLs, hard links, devices and holes.
// Its last members are a list of SHA-256 sums that `sha256sum -c` reads, and a summary that tells a whole archive from a
// cut one.
package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

const (
	// chunkSize is how much of the tar is compressed at a time, in bytes, as a zstd frame of its own (RFC 8878 §3.1: frames
	// may follow each other), so that all CPUs can do it side by side.
	chunkSize = 2 << 20
	// batchEntries is how many entries one reader takes at most.
	batchEntries = 256
	// readers read files side by side. More than the CPUs, since disks and servers take their time.
	readers = 4
	// ahead is how many chunks a reader may be ahead of what is written.
	ahead = 2
)

// Source is the volume that is read.
type Source struct {
	// Dir is the volume's directory.
	Dir *os.File
	// Name, and Now if not nil, are for the summary.
	Name string
	Now  func() time.Time
	// Base is an earlier backup, whose files are not read again as long as they have not changed; nil for a full one.
	Base *Base
	// Zstd is a zstd program that compresses, since it takes two thirds of the time that the compressor in Go takes. Empty:
	// that one does it.
	Zstd string
	// Warn is told what is left out or changed while it was read; Progress what was read so far. Both may be nil.
	Warn     func(string)
	Progress func(Progress)
}

// Progress is how far a backup or restore is.
type Progress struct {
	Entries int64
	// Bytes of files.
	Bytes int64
}

// chunk is a piece of the tar on its way.
type chunk struct {
	raw, packed []byte
	// done is closed when packed is there.
	done chan struct{}
}

// batch is a run of entries that one reader reads.
type batch struct {
	entries []*entry
	chunks  chan *chunk
	// sums and index are the lines of these lists; valid once chunks is closed, as is what follows.
	sums, index []byte
	// count and bytes are those of what was read, same and sameBytes of what has not changed.
	count, bytes, same, sameBytes int64
	// from are the archives that have what has not changed.
	from map[int]bool
	err  error
}

// creator is one backup being made.
type creator struct {
	Source
	root int
	// created is the time before anything was looked at.
	created  time.Time
	work     chan *batch
	order    chan *batch
	compress chan *chunk
	// free are buffers for chunks.
	free chan []byte
}

// Create writes the volume to out. Files may change meanwhile: each is whole in itself, as far as its writers allow.
func Create(ctx context.Context, src Source, out io.Writer) (Summary, error) {
	c := newCreator(src)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.plan(ctx) })
	packers := runtime.GOMAXPROCS(0)
	if src.Zstd != "" {
		packers = 0
	}
	for range readers {
		g.Go(func() error { return c.read(ctx) })
	}
	for range packers {
		g.Go(func() error { return c.pack(ctx) })
	}
	var summary Summary
	g.Go(func() (err error) {
		defer close(c.compress)
		summary, err = c.write(ctx, out)
		return err
	})
	if err := g.Wait(); err != nil {
		return Summary{}, fmt.Errorf("back up %s: %w", src.Name, err)
	}
	return summary, nil
}

func newCreator(src Source) *creator {
	if src.Now == nil {
		src.Now = time.Now
	}
	var mu sync.Mutex // readers warn side by side
	warn := src.Warn
	src.Warn = func(text string) {
		mu.Lock()
		defer mu.Unlock()
		if warn != nil {
			warn(text)
		}
	}
	if src.Progress == nil {
		src.Progress = func(Progress) {}
	}
	return &creator{
		Source: src, root: int(src.Dir.Fd()), created: src.Now().UTC(),
		work: make(chan *batch), order: make(chan *batch, readers), compress: make(chan *chunk, readers*ahead),
		free: make(chan []byte, 2*readers*(ahead+2)), // of as many batches as wait to be written
	}
}

// plan divides the volume into batches, in the order in which they are written.
func (c *creator) plan(ctx context.Context) error {
	defer close(c.work)
	defer close(c.order)
	var b *batch
	size := int64(0)
	flush := func() error {
		if b == nil {
			return nil
		}
		full := b
		b, size = nil, 0
		for _, to := range []chan *batch{c.order, c.work} {
			select {
			case to <- full:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	compare, err := compareWith(c.Base)
	if err != nil {
		return err
	}
	w := walker{root: c.root, first: map[fileID]string{}, warn: c.Warn, emit: func(e *entry) error {
		if err := compare.note(e); err != nil {
			return err
		}
		if b == nil {
			b = &batch{chunks: make(chan *chunk, ahead), from: map[int]bool{}}
		}
		b.entries = append(b.entries, e)
		size += 2 * block
		if e.regular() && e.from == 0 {
			size += e.stat.Size
		}
		if size >= chunkSize || len(b.entries) >= batchEntries {
			return flush()
		}
		return nil
	}}
	if err := w.walk(ctx, "."); err != nil {
		return err
	}
	return flush()
}

// read is one reader.
func (c *creator) read(ctx context.Context) error {
	r := &reader{creator: c, ctx: ctx, buf: c.buffer(), sum: sha256.New()}
	for b := range c.work {
		r.batch = b
		for _, e := range b.entries {
			if b.err = r.entry(e); b.err != nil {
				break
			}
		}
		if b.err == nil {
			b.err = r.flush()
		}
		err := b.err
		close(b.chunks)
		if err != nil {
			return err
		}
	}
	return nil
}

// pack is one compressor. The content checksum of each frame is what finds a damaged archive first.
func (c *creator) pack(ctx context.Context) error {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(true), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return err
	}
	for {
		select {
		case k, ok := <-c.compress:
			if !ok {
				return z.Close()
			}
			k.packed = z.EncodeAll(k.raw, c.buffer())
			c.reuse(k.raw)
			close(k.done)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// write puts the chunks in order, and the manifest and the end of the tar after them.
func (c *creator) write(ctx context.Context, out io.Writer) (Summary, error) {
	l, err := newLists()
	if err != nil {
		return Summary{}, err
	}
	defer l.close()
	counted := &counter{Writer: out}
	packed, end, err := c.packer(ctx, counted)
	if err != nil {
		return Summary{}, err
	}
	defer end()
	s := Summary{Format: format, Volume: c.Name, Created: c.created}
	used := map[int]bool{}
	for b := range c.order {
		if err := c.putBatch(ctx, b, packed); err != nil {
			return s, errors.Join(err, end())
		}
		_, sumsErr := l.sums.Write(b.sums)
		_, indexErr := l.index.Write(b.index)
		if err := errors.Join(sumsErr, indexErr); err != nil {
			return s, err
		}
		maps.Copy(used, b.from)
		s.Entries, s.Bytes = s.Entries+b.count, s.Bytes+b.bytes
		s.Unchanged, s.UnchangedBytes = s.Unchanged+b.same, s.UnchangedBytes+b.sameBytes
		c.Progress(Progress{s.Entries + s.Unchanged, s.Bytes + s.UnchangedBytes})
	}
	if err := ctx.Err(); err != nil { // the plan was cut short
		return s, err
	}
	if err := end(); err != nil {
		return s, err
	}
	s.Bases = c.Base.references(used)
	return s, c.finish(l, &s, counted)
}

// counter counts what is written.
type counter struct {
	io.Writer
	n   int64
	err error
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.note(int64(n), err)
	return n, err
}

func (c *counter) note(n int64, err error) {
	if c.n += n; err != nil {
		c.err = err
	}
}

// putBatch writes what a reader has read, as it comes.
func (c *creator) putBatch(ctx context.Context, b *batch, out func([]byte) error) error {
	for {
		select {
		case k, ok := <-b.chunks:
			if !ok {
				return b.err
			}
			select {
			case <-k.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := out(k.packed); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return fmt.Errorf("write the archive: %w", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// finish writes the last members.
func (c *creator) finish(l lists, s *Summary, out *counter) error {
	at := out.n
	z, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(true),
		zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	if err := l.writeTo(z, s); err != nil {
		return errors.Join(fmt.Errorf("write the archive: %w", err), z.Close())
	}
	err = z.Close()
	if err == nil {
		_, err = out.Write(appendTrailer(nil, at))
	}
	if err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}

// buffer returns an empty buffer for a chunk.
func (c *creator) buffer() []byte {
	select {
	case b := <-c.free:
		return b[:0]
	default:
		return make([]byte, 0, chunkSize+64<<10)
	}
}

func (c *creator) reuse(b []byte) {
	select {
	case c.free <- b:
	default:
	}
}
