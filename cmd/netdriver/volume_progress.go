package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progressEvery is how often a progress bar is drawn at most.
const progressEvery = 200 * time.Millisecond

// progress is a bar on a terminal; elsewhere it shows nothing.
type progress struct {
	out     io.Writer
	what    string
	visible bool
	start   time.Time
	// total is in bytes, 0 if it is not known.
	total int64

	mu   sync.Mutex
	last time.Time
}

func (a app) progress(what string) *progress {
	f, ok := a.err.(*os.File)
	return &progress{out: a.err, what: what, visible: ok && isTerminal(f), start: time.Now()}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// at draws the bar, if it is time.
func (p *progress) at(done, entries int64) {
	if !p.visible {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Sub(p.last) < progressEvery {
		return
	}
	p.last = now
	fmt.Fprint(p.out, "\r\x1b[K"+progressLine(p.what, done, p.total, entries, now.Sub(p.start)))
}

// end removes the bar.
func (p *progress) end() {
	if !p.visible {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.visible = false
	fmt.Fprint(p.out, "\r\x1b[K")
}

// barWidth is the bar's, in characters.
const barWidth = 24

// progressLine writes how far something is: a bar, the rate, and the time that is left at that rate.
func progressLine(what string, done, total, entries int64, took time.Duration) string {
	rate := float64(done) / max(took.Seconds(), 0.001)
	line := what + " "
	if total > 0 {
		part := min(float64(done)/float64(total), 1)
		full := int(part * barWidth)
		line += fmt.Sprintf("[%s%s] %3.0f %%  ", strings.Repeat("#", full), strings.Repeat(" ", barWidth-full), part*100)
	}
	line += fmt.Sprintf("%s  %s/s", size(done), size(int64(rate)))
	if entries > 0 {
		line += fmt.Sprintf("  %d entries", entries)
	}
	if total > done && rate > 0 {
		line += fmt.Sprintf("  %s left", span(time.Duration(float64(total-done)/rate*float64(time.Second))))
	}
	return line
}
