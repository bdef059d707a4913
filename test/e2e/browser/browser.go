// Package browser drives a headless Chromium, for tests of the daemon's page.
package browser

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds what a browser on a busy machine may take for anything.
const patience = 60 * time.Second

// Browser is a headless Chromium that is spoken to through two pipes (--remote-debugging-pipe): JSON messages that end with a
// zero byte, https://chromedevtools.github.io/devtools-protocol/.
type Browser struct {
	in io.Writer

	mu      sync.Mutex
	last    int
	waiting map[int]chan message
	// said are exceptions, errors and refused loads of all tabs, by session.
	said map[string][]string
	dead error
}

type message struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  any             `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *failure        `json:"error,omitempty"`
}

type failure struct {
	Message string `json:"message"`
}

// Start runs a browser until the test ends. command prepares it, as exec.CommandContext does.
func Start(t *testing.T, command func(ctx context.Context, args ...string) *exec.Cmd) *Browser {
	t.Helper()
	if _, err := exec.LookPath("chromium"); err != nil {
		t.Fatalf("%v: script/deps installs it", err)
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	// The sandbox refuses to be used by root; the pages are ours.
	cmd := command(ctx, "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-device-scale-factor=1",
		"--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &Browser{in: in, waiting: map[int]chan message{}, said: map[string][]string{}}
	read := make(chan struct{})
	go func() { b.read(out); close(read) }()
	t.Cleanup(func() {
		_ = b.call("", "Browser.close", nil, nil) // its answer may be lost with it
		<-read
		cancel()
		_ = cmd.Wait() // interrupted
		in.Close()
		out.Close()
	})
	return b
}

// read takes what the browser says until it ends.
func (b *Browser) read(out io.Reader) {
	r := bufio.NewReader(out)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.dead = errors.New("the browser has ended")
			for _, c := range b.waiting {
				close(c)
			}
			b.waiting = nil
			return
		}
		var m struct {
			message
			Params json.RawMessage `json:"params"`
		}
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		switch m.Method {
		case "":
			if c := b.waiting[m.ID]; c != nil {
				c <- m.message
				delete(b.waiting, m.ID)
			}
		case "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening":
			b.said[m.Session] = append(b.said[m.Session], m.Method+" "+string(m.Params))
		}
		b.mu.Unlock()
	}
}

// call asks the browser, or one of its tabs.
func (b *Browser) call(session, method string, params, result any) error {
	c := make(chan message, 1)
	b.mu.Lock()
	if b.dead != nil {
		b.mu.Unlock()
		return b.dead
	}
	b.last++
	m := message{ID: b.last, Session: session, Method: method, Params: params}
	b.waiting[m.ID] = c
	b.mu.Unlock()
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := b.in.Write(append(text, 0)); err != nil {
		return err
	}
	select {
	case answer, ok := <-c:
		switch {
		case !ok:
			return errors.New("the browser has ended")
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", method, answer.Error.Message)
		case result != nil:
			return json.Unmarshal(answer.Result, result)
		}
		return nil
	case <-time.After(patience):
		return fmt.Errorf("%s: no answer within %s", method, patience)
	}
}

// Tab is one page.
type Tab struct {
	t       *testing.T
	b       *Browser
	session string
}

// Look is how a reader sees the page.
type Look struct {
	Width, Height int
	// Dark: dark colours, Still: as little motion as possible.
	Dark, Still bool
}

// Open opens an address, and waits until the page has read the cluster.
func (b *Browser) Open(t *testing.T, address string, as Look) *Tab {
	t.Helper()
	var target struct{ TargetID string }
	var attached struct{ SessionID string }
	tb := &Tab{t: t, b: b}
	err := errors.Join(
		b.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target),
		b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached))
	if err != nil {
		t.Fatal(err)
	}
	tb.session = attached.SessionID
	scheme, motion := "light", "no-preference"
	if as.Dark {
		scheme = "dark"
	}
	if as.Still {
		motion = "reduce"
	}
	tb.Call("Page.enable", nil, nil)
	tb.Call("Runtime.enable", nil, nil)
	tb.Call("Log.enable", nil, nil)
	tb.Call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{
		{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion},
	}}, nil)
	tb.Call("Emulation.setDeviceMetricsOverride", map[string]any{
		"width": as.Width, "height": as.Height, "deviceScaleFactor": 1, "mobile": false,
	}, nil)
	tb.Call("Page.navigate", map[string]any{"url": address}, nil)
	tb.Until(`!document.querySelector('#verdict')?.textContent.includes('reading') && document.readyState === 'complete'`)
	t.Cleanup(func() {
		b.mu.Lock()
		for _, said := range slices.Compact(b.said[tb.session]) {
			t.Errorf("the page's console: %.400s", said)
		}
		b.mu.Unlock()
		_ = b.call("", "Target.closeTarget", map[string]any{"targetId": target.TargetID}, nil) // it goes with the browser at last
	})
	return tb
}

// Quiet forgets what the console has said that has one of these texts, which the test has caused.
func (tb *Tab) Quiet(texts ...string) {
	tb.b.mu.Lock()
	defer tb.b.mu.Unlock()
	tb.b.said[tb.session] = slices.DeleteFunc(tb.b.said[tb.session], func(said string) bool {
		return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(said, text) })
	})
}

// Call makes one of the protocol's calls.
func (tb *Tab) Call(method string, params, result any) {
	tb.t.Helper()
	if err := tb.b.call(tb.session, method, params, result); err != nil {
		tb.t.Fatal(err)
	}
}

// Eval returns what an expression, or its promise, gives, into out if that is not nil.
func (tb *Tab) Eval(expression string, out any) {
	tb.t.Helper()
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	tb.Call("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &r)
	if r.ExceptionDetails != nil {
		tb.t.Fatalf("%s: %s", expression, r.ExceptionDetails)
	}
	if out != nil {
		if err := json.Unmarshal(r.Result.Value, out); err != nil {
			tb.t.Fatalf("%s: %v in %s", expression, err, r.Result.Value)
		}
	}
}

// Until waits for a condition.
func (tb *Tab) Until(condition string) {
	tb.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var ok bool
		if tb.Eval("Boolean("+condition+")", &ok); ok {
			return
		}
		if time.Now().After(end) {
			var text string
			tb.Eval("document.body.innerText", &text)
			tb.t.Fatalf("not within %s: %s\n%s", patience, condition, text)
		}
	}
}

// Text is what a reader sees of the first element that a selector finds.
func (tb *Tab) Text(selector string) string {
	tb.t.Helper()
	var out string
	tb.Eval(fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector), &out)
	return out
}

// Click chooses what a selector finds.
func (tb *Tab) Click(selector string) {
	tb.t.Helper()
	tb.Until(fmt.Sprintf("document.querySelector(%q)", selector))
	tb.Eval(fmt.Sprintf("document.querySelector(%q).dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true, view: window}))", selector), nil)
}

// Shows waits until an element shows all texts.
func (tb *Tab) Shows(selector string, texts ...string) {
	tb.t.Helper()
	for _, text := range texts {
		tb.Until(fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", selector, text))
	}
}

// Key presses a key.
func (tb *Tab) Key(name string) {
	tb.t.Helper()
	code := map[string]int{"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "End": 35, "Home": 36}[name]
	event := map[string]any{"type": "keyDown", "key": name, "code": name, "windowsVirtualKeyCode": code}
	if name == "Enter" {
		event["text"] = "\r"
	}
	tb.Call("Input.dispatchKeyEvent", event, nil)
	event["type"] = "keyUp"
	tb.Call("Input.dispatchKeyEvent", event, nil)
}

// Picture saves a picture of what is in sight to out/page, for people to look at.
func (tb *Tab) Picture(name string) {
	tb.t.Helper()
	// Two frames: what was to be drawn is drawn.
	tb.Eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))", nil)
	var shot struct{ Data string }
	tb.Call("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		tb.t.Fatal(err)
	}
	dir := filepath.Join(root(tb.t), "out", "page")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		tb.t.Fatal(err)
	}
}

// root is the directory of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, gone := os.Stat(filepath.Join(dir, "go.mod")); gone == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	t.Fatalf("no go.mod above the test: %v", err)
	return ""
}
