package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/pcapgo"
	"pgregory.net/rapid"
)

// heard is a sink that remembers.
type heard struct {
	frames []Record
	notes  []string
	lost   uint64
	most   int // frames that it takes; 0 is no bound
}

func (h *heard) Port(int, int, Port) error { return nil }
func (h *heard) Flush() error              { return nil }
func (h *heard) Lost(_, _ int, n uint64)   { h.lost += n }
func (h *heard) Note(_ int, text string)   { h.notes = append(h.notes, text) }
func (h *heard) Frame(r Record) error {
	h.frames = append(h.frames, r)
	if len(h.frames) == h.most {
		return ErrEnough
	}
	return nil
}

// told is a source that says some batches and ends, or stays silent until the capture ends.
func told(node string, clock Clock, stays bool, batches ...Batch) Source {
	return Source{Node: node, Clock: clock, Read: func(ctx context.Context, emit func(Batch) error) error {
		for _, b := range batches {
			if err := emit(b); err != nil {
				return err
			}
		}
		if stays {
			<-ctx.Done()
		}
		return nil
	}}
}

func packets(times ...int64) []Packet {
	var out []Packet
	for _, t := range times {
		out = append(out, Packet{Time: t, Length: 60, Data: make([]byte, 60)})
	}
	return out
}

func batch(until int64, times ...int64) Batch {
	return Batch{Ports: []Port{{Endpoint: "e"}}, Packets: packets(times...), Until: until}
}

func TestFramesOfAllNodesComeInTheOrderOfTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(1, 4).Draw(t, "nodes")
		var sources []Source
		var want []int64
		for n := range nodes {
			ahead := int64(rapid.IntRange(-500, 500).Draw(t, "ahead"))
			var batches []Batch
			at := int64(1000)
			for range rapid.IntRange(0, 5).Draw(t, "batches") {
				var times []int64
				for range rapid.IntRange(0, 5).Draw(t, "frames") {
					at += int64(rapid.IntRange(0, 300).Draw(t, "gap"))
					times, want = append(times, at+ahead), append(want, at)
				}
				batches = append(batches, batch(at+ahead, times...))
			}
			sources = append(sources, told(fmt.Sprint(n), Clock{Ahead: time.Duration(ahead)}, false, batches...))
		}
		var got heard
		if err := Merge(context.Background(), sources, &got); err != nil {
			t.Fatal(err)
		}
		slices.Sort(want)
		var times []int64
		for _, r := range got.frames {
			times = append(times, r.Time.UnixNano())
		}
		if !slices.Equal(times, want) {
			t.Errorf("times %v, want %v", times, want)
		}
	})
}

func TestASilentNodeHoldsTheOthersBackForAMomentOnly(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got := heard{most: 2}
	begin := time.Now()
	err := Merge(ctx, []Source{told("n1", Clock{}, true, batch(100, 10, 20)), told("n2", Clock{}, true)}, &got)
	if err != nil || len(got.frames) != 2 {
		t.Errorf("%d frames, error %v", len(got.frames), err)
	}
	if took := time.Since(begin); took < patience {
		t.Errorf("it took %s: nobody waited for the silent node", took)
	}
}

func TestANodeThatFailsIsNotedAndTheOthersGoOn(t *testing.T) {
	broken := Source{Node: "n2", Read: func(context.Context, func(Batch) error) error { return errors.New("its host has gone") }}
	b := batch(100, 10)
	b.Lost = map[int]uint64{0: 7}
	var got heard
	if err := Merge(t.Context(), []Source{told("n1", Clock{}, false, b), broken}, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.frames) != 1 || got.lost != 7 || !slices.Equal(got.notes, []string{"its host has gone"}) {
		t.Errorf("%d frames, %d lost, notes %q", len(got.frames), got.lost, got.notes)
	}
}

func TestWhatANodeTellsOfAPortThatItHasNotIsRefused(t *testing.T) {
	bad := batch(10, 1)
	bad.Packets[0].Port = 3
	if err := Merge(t.Context(), []Source{told("n1", Clock{}, false, bad)}, &heard{}); err == nil {
		t.Error("it is believed")
	}
}

func TestACaptureEndsAtItsBounds(t *testing.T) {
	endless := Source{Node: "n1", Read: func(ctx context.Context, emit func(Batch) error) error {
		for i := int64(1); ; i++ {
			b := batch(i, i)
			if i > 1 {
				b.Ports = nil
			}
			if err := emit(b); err != nil {
				return err
			}
		}
	}}
	for want, b := range map[int]*Bounded{5: {Count: 5}, 3: {Bytes: 150}} {
		var got heard
		b.Sink = &got
		if err := Merge(t.Context(), []Source{endless}, b); err != nil {
			t.Fatal(err)
		}
		if b.Frames != want || len(got.frames) != want || b.Data != int64(60*want) {
			t.Errorf("%d frames of %d bytes, want %d", b.Frames, b.Data, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Merge(ctx, []Source{told("n1", Clock{}, true, batch(9, 5))}, &heard{}); err != nil {
		t.Errorf("at the end of its time: %v", err)
	}
}

// scene has two nodes; the second's clock is 2 ms ahead.
func scene() Scene {
	return Scene{
		Network: "web", Filter: "tcp", Sources: []Source{{Node: "n1"}, {Node: "n2", Clock: Clock{2 * time.Millisecond, 10 * time.Microsecond}}},
		Endpoint: func(id string) Endpoint {
			if id != "0123456789abcdef" {
				return Endpoint{}
			}
			return Endpoint{Container: "front", Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.2")}}
		},
	}
}

// written gives a sink a frame of each of two ports and something that was lost.
func written(t *testing.T, s Sink) {
	t.Helper()
	data := frames(t)
	frame := func(source int, sent bool, f []byte) error {
		at := time.Unix(1000, int64(source)*1000)
		return s.Frame(Record{Packet: Packet{Time: at.UnixNano(), Sent: sent, Length: len(f) + 100, Data: f}, Source: source, Time: at})
	}
	err := errors.Join(
		s.Port(0, 0, Port{Endpoint: "0123456789abcdef", Device: "ndp0123456789"}), frame(0, true, data[0]),
		s.Port(1, 0, Port{Endpoint: "fedcba9876543210", Device: "ndpfedcba9876"}), frame(1, false, data[1]), s.Flush(),
	)
	s.Lost(1, 0, 3)
	if err != nil {
		t.Fatal(err)
	}
}

func TestAFileNamesNodeNetworkAndEndpointOfEachInterface(t *testing.T) {
	var b bytes.Buffer
	f := NewFile(&b, scene(), 300, nil)
	written(t, f)
	whole := slices.Clone(b.Bytes()) // so far: a program that is killed now has written a file that can be read
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, text := range [][]byte{whole, b.Bytes()} {
		r, err := pcapgo.NewNgReader(bytes.NewReader(text), pcapgo.NgReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var lengths []int
		for {
			_, ci, err := r.ReadPacketData()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			lengths = append(lengths, ci.Length-ci.CaptureLength)
		}
		first, _ := r.Interface(0)
		second, _ := r.Interface(1)
		type named struct{ Name, Description, Comment, Filter string }
		got := []named{{first.Name, first.Description, first.Comment, first.Filter}, {second.Name, second.Description, second.Comment, second.Filter}}
		for i := range got { // the filter's first byte says that it is text
			got[i].Filter = strings.TrimLeft(got[i].Filter, "\x00")
		}
		want := []named{
			{"front@n1", "network web, endpoint 0123456789abcdef, container front, 10.10.0.2, on node n1 at ndp0123456789", "outbound is what the container sent", "tcp"},
			{"fedcba987654@n2", "network web, endpoint fedcba9876543210, on node n2 at ndpfedcba9876",
				"outbound is what the container sent (its clock is 2.000 ms ahead, give or take 0.010 ms; times are corrected)", "tcp"},
		}
		if diff := cmp.Diff(want, got); diff != "" || !slices.Equal(lengths, []int{100, 100}) {
			t.Errorf("lengths %v, interfaces (-want +got):\n%s", lengths, diff)
		}
		if n := second.Statistics.PacketsDropped; len(text) > len(whole) && n != 3 {
			t.Errorf("the file says %d lost, want 3", n)
		}
	}
}

func TestTsharkReadsAFileWithoutAnyPort(t *testing.T) {
	var b bytes.Buffer
	if err := NewFile(&b, scene(), 300, nil).Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "tshark", "-n", "-r", "-")
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "appears") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestLinesSayWhoWhereAndWhat(t *testing.T) {
	var text, asJSON bytes.Buffer
	written(t, NewLines(&text, scene(), false, nil))
	written(t, NewLines(&asJSON, scene(), true, nil))
	for _, want := range []string{" front@n1 out ", " fedcba987654@n2 in  "} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in %s", want, text.String())
		}
	}
	for _, want := range []string{`"schema":"netdriver.capture/v1"`, `"container":"front"`, `"direction":"out"`, `"endpoint":"fedcba9876543210"`} {
		if !strings.Contains(asJSON.String(), want) {
			t.Errorf("no %q in %s", want, asJSON.String())
		}
	}
}
