package capture

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Schema names the version of a frame's JSON.
const Schema = "netdriver.capture/v1"

// Endpoint is what is known of one besides its port.
type Endpoint struct {
	Container string
	Addresses []netip.Addr
}

// Scene is what a capture is of. Sinks name things by it.
type Scene struct {
	Network string
	// Filter is its text.
	Filter  string
	Sources []Source
	// Endpoint says what is known of one by its id.
	Endpoint func(id string) Endpoint
}

// name is what people call a port: by its container, or its endpoint's id, and the node.
func (s Scene) name(source int, p Port) string {
	const short = 12
	return cmp.Or(s.Endpoint(p.Endpoint).Container, p.Endpoint[:min(len(p.Endpoint), short)]) + "@" + s.Sources[source].Node
}

// About says, in a few lines, what all of the capture's readers should know.
func (s Scene) About() string {
	var nodes []string
	for _, x := range s.Sources {
		nodes = append(nodes, x.Node+x.Clock.String())
	}
	text := "netdriver capture of network " + s.Network + " on " + strings.Join(nodes, ", ")
	if s.Filter != "" {
		text += ", filter " + s.Filter
	}
	return text + ". Frames as they are between container and bridge, inside of VXLAN and ESP; one between two containers is seen at both."
}

// String says how a clock differs, if it does.
func (c Clock) String() string {
	if c == (Clock{}) {
		return ""
	}
	if c.Ahead == 0 {
		return fmt.Sprintf(" (its clock agrees, within %s)", milli(c.Uncertain))
	}
	ahead, word := c.Ahead, "ahead"
	if ahead < 0 {
		ahead, word = -ahead, "behind"
	}
	return fmt.Sprintf(" (its clock is %s %s, give or take %s; times are corrected)", milli(ahead), word, milli(c.Uncertain))
}

func milli(d time.Duration) string {
	return fmt.Sprintf("%.3f ms", float64(d)/float64(time.Millisecond))
}

// Bounded passes frames on until there are Count of them or their data is larger than Bytes; 0 is no bound. It counts what
// went by.
type Bounded struct {
	Sink
	Count int
	Bytes int64

	// Frames and Data are how many frames and bytes were passed on, Missed how many frames found no room.
	Frames int
	Data   int64
	Missed uint64
}

// Frame implements Sink.
func (b *Bounded) Frame(r Record) error {
	if err := b.Sink.Frame(r); err != nil {
		return err
	}
	b.Frames++
	b.Data += int64(len(r.Data))
	if b.Count > 0 && b.Frames >= b.Count || b.Bytes > 0 && b.Data >= b.Bytes {
		return ErrEnough
	}
	return nil
}

// Lost implements Sink.
func (b *Bounded) Lost(source, port int, n uint64) {
	b.Missed += n
	b.Sink.Lost(source, port, n)
}

// roster remembers the ports of all sources.
type roster struct {
	scene Scene
	known [][]Port
}

func newRoster(s Scene) roster { return roster{s, make([][]Port, len(s.Sources))} }

func (r *roster) add(source int, p Port) { r.known[source] = append(r.known[source], p) }

// File writes pcapng, with an interface for each port.
type File struct {
	roster
	snap   int
	out    io.Writer
	w      *pcapgo.NgWriter
	number map[[2]int]int
	stats  []pcapgo.NgInterfaceStatistics
	// note is called with what a source says of itself.
	note func(source int, text string)
}

// NewFile returns a Sink that writes to out. snap is how much of a frame is kept, in bytes.
func NewFile(out io.Writer, s Scene, snap int, note func(source int, text string)) *File {
	return &File{roster: newRoster(s), snap: snap, out: out, number: map[[2]int]int{}, note: note}
}

// Port implements Sink.
func (f *File) Port(source, port int, p Port) error {
	f.add(source, p)
	from, known := f.scene.Sources[source], f.scene.Endpoint(p.Endpoint)
	description := fmt.Sprintf("network %s, endpoint %s", f.scene.Network, p.Endpoint)
	if known.Container != "" {
		description += ", container " + known.Container
	}
	for _, a := range known.Addresses {
		description += ", " + a.String()
	}
	description += fmt.Sprintf(", on node %s at %s", from.Node, p.Device)
	n, err := f.describe(pcapgo.NgInterface{
		Name: f.scene.name(source, p), Description: description, Filter: f.scene.Filter, OS: "Linux",
		Comment: "outbound is what the container sent" + from.Clock.String(), LinkType: layers.LinkTypeEthernet, SnapLength: uint32(f.snap),
	})
	f.number[[2]int{source, port}] = n
	f.stats = append(f.stats, pcapgo.NgInterfaceStatistics{StartTime: time.Now()})
	return err
}

// describe writes an interface, the first one with the file's beginning.
func (f *File) describe(i pcapgo.NgInterface) (int, error) {
	if f.w != nil {
		return f.w.AddInterface(i)
	}
	var err error
	f.w, err = pcapgo.NewNgWriterInterface(f.out, i, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
		OS: "Linux", Application: "netdriver", Comment: f.scene.About(),
	}})
	return 0, err
}

// Frame implements Sink.
func (f *File) Frame(r Record) error {
	n := f.number[[2]int{r.Source, r.Port}]
	f.stats[n].PacketsReceived++
	direction := pcapgo.NgEpbFlagDirectionInbound
	if r.Sent {
		direction = pcapgo.NgEpbFlagDirectionOutbound
	}
	return f.w.WritePacketWithOptions(
		gopacket.CaptureInfo{Timestamp: r.Time, CaptureLength: len(r.Data), Length: r.Length, InterfaceIndex: n},
		r.Data, pcapgo.NgPacketOptions{Flags: &pcapgo.NgEpbFlags{Direction: direction}},
	)
}

// Lost implements Sink.
func (f *File) Lost(source, port int, n uint64) {
	if i, known := f.number[[2]int{source, port}]; known {
		f.stats[i].PacketsDropped += n
	}
}

// Note implements Sink.
func (f *File) Note(source int, text string) { f.note(source, text) }

// Flush implements Sink: what was written so far can be read, also if the program is killed now.
func (f *File) Flush() error {
	if f.w == nil {
		return nil
	}
	return f.w.Flush()
}

// Close writes the file's end, with the count of what found no room.
func (f *File) Close() error {
	if f.w == nil { // there was no port: an interface makes it a file that can be read
		if _, err := f.describe(pcapgo.NgInterface{Name: f.scene.Network, Description: "no port was captured", LinkType: layers.LinkTypeEthernet}); err != nil {
			return err
		}
	}
	var errs []error
	for i, s := range f.stats {
		s.EndTime, s.LastUpdate = time.Now(), time.Now()
		errs = append(errs, f.w.WriteInterfaceStats(i, s))
	}
	return errors.Join(append(errs, f.w.Flush())...)
}

// Lines writes a line for each frame.
type Lines struct {
	roster
	out  *bufio.Writer
	json bool
	note func(source int, text string)
}

// NewLines returns a Sink that writes text as tcpdump does, or JSON, one object a line.
func NewLines(out io.Writer, s Scene, asJSON bool, note func(source int, text string)) *Lines {
	return &Lines{roster: newRoster(s), out: bufio.NewWriter(out), json: asJSON, note: note}
}

// line is a frame's JSON.
type line struct {
	Schema    string    `json:"schema"`
	Time      time.Time `json:"time"`
	Network   string    `json:"network"`
	Node      string    `json:"node"`
	Endpoint  string    `json:"endpoint"`
	Container string    `json:"container,omitempty"`
	// Direction is "out" if the container sent it, else "in".
	Direction string `json:"direction"`
	// Length is the whole frame's in bytes, of which Data has as many as were asked for.
	Length  int    `json:"length"`
	Summary string `json:"summary"`
	Data    []byte `json:"data"`
}

// Port implements Sink.
func (l *Lines) Port(source, _ int, p Port) error {
	l.add(source, p)
	return nil
}

// Frame implements Sink.
func (l *Lines) Frame(r Record) error {
	port := l.known[r.Source][r.Packet.Port]
	direction, text := "in", Summary(r.Data, r.Length)
	if r.Sent {
		direction = "out"
	}
	if l.json {
		return json.NewEncoder(l.out).Encode(line{
			Schema: Schema, Time: r.Time, Network: l.scene.Network, Node: l.scene.Sources[r.Source].Node, Endpoint: port.Endpoint,
			Container: l.scene.Endpoint(port.Endpoint).Container, Direction: direction, Length: r.Length, Summary: text, Data: r.Data,
		})
	}
	_, err := fmt.Fprintf(l.out, "%s %s %-3s %s\n", r.Time.Local().Format("15:04:05.000000"), l.scene.name(r.Source, port), direction, text)
	return err
}

// Lost implements Sink.
func (*Lines) Lost(int, int, uint64) {}

// Note implements Sink.
func (l *Lines) Note(source int, text string) { l.note(source, text) }

// Flush implements Sink.
func (l *Lines) Flush() error { return l.out.Flush() }

// Close implements io.Closer.
func (l *Lines) Close() error { return l.out.Flush() }
