//go:build e2e

// Package page looks at the daemon's page with a real browser, at clusters that are made up. Pictures go to out/page.
package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/test/e2e/browser"
)

// start runs a browser.
func start(t *testing.T) *browser.Browser {
	t.Helper()
	return browser.Start(t, func(ctx context.Context, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, args[0], args[1:]...)
	})
}

// small is a cluster as most are: five nodes, four networks, one of which three nodes have.
func small() *fake {
	return newFake(5, 4, func(k int) int { return 8 + 5*k }, func(network, node int) bool { return network != 2 || node < 3 })
}

// broken is a small one with a dead node, and a network that failed on the first.
func broken() *fake {
	f := small()
	f.down(3)
	f.fault(1, diag.Failed, 0, "", "create bridge ndb1002: no space left on device", "remove the cause named here; it is tried again within 30 s")
	f.checks = diag.CheckReport{
		Schema: diag.CheckSchema, Node: nodeName(0), Verdict: diag.Failed,
		Findings: []diag.Finding{{
			Check: "peers", Severity: diag.Failed, Place: "node4", Cause: "nothing comes back from node4", Evidence: []string{"3 frames sent, 0 seen"},
			Remedy: "look at its host",
		}},
		Checks: []diag.CheckRow{{Name: "peers", Looks: "marked frames to each other node and back", Verdict: diag.Failed}, {Name: "disk", Looks: "space", Verdict: diag.Healthy}},
	}
	return f
}

// large has 300 nodes and 10,000 endpoints in 40 networks, one of which is on all nodes.
func large() *fake {
	f := newFake(300, 40, func(k int) int {
		switch k {
		case 0:
			return 4000
		case 1:
			return 6000 - 38*(6000/39)
		}
		return 6000 / 39
	}, func(network, node int) bool { return network == 0 || node%5 == network%5 || node == 0 })
	f.down(41)
	f.down(123)
	return f
}

// focused describes what has the keyboard.
func focused(tb *browser.Tab) string {
	var out string
	tb.Eval(`(() => { const e = document.activeElement;
		return [e.tagName.toLowerCase(), e.id, e.getAttribute('aria-label') ?? e.innerText?.trim() ?? ''].join('|').slice(0, 120); })()`, &out)
	return out
}

func TestThePageShowsWhatIsWrongWithItsRemedyAndLeadsToTheWholeReport(t *testing.T) {
	tb := start(t).Open(t, broken().serve(t), browser.Look{Width: 1440, Height: 900})
	tb.Shows("#verdict", "failed")
	tb.Shows("#details", "create bridge ndb1002: no space left on device", "node4 is not connected to the store", "start its host", "node1 (192.0.2.1)")
	if text := tb.Text("#details"); strings.Count(text, "is not connected") != 1 || strings.Contains(text, "may be unreachable") {
		t.Errorf("the dead node is to be told once, without the figures of one network:\n%s", text)
	}
	tb.Shows("#tiles", "1 DOWN", "1 failed", "2 degraded", "62", "Mbit/s")
	tb.Click(`[data-kind="cell"][data-node="node4"][data-network="web"]`)
	tb.Shows("#details", "web", "its 1 endpoints may be unreachable", "1450 = 1500 underlay − 50 VXLAN", "8 of 65,534 used", "as the records want it",
		"Endpoints (1 of 8)", "netdriver inspect web")
	tb.Click(`#details a[data-key="node/node4"]`)
	tb.Shows("#details", "node4", "DOWN", "192.0.2.4", "Networks (3)", "1.0 Mbit/s")
	tb.Click(`#details button[data-key="check"]`)
	tb.Shows("#details", "nothing comes back from node4", "3 frames sent, 0 seen", "look at its host", "2 things looked at")
	tb.Click(`#details a.back`)
	tb.Shows("#details", "What is wrong")
}

func TestWhatChangesIsShownAndSaid(t *testing.T) {
	f := small()
	tb := start(t).Open(t, f.serve(t)+"#/network/web", browser.Look{Width: 1440, Height: 900})
	tb.Shows("#verdict", "healthy")
	tb.Shows("#details", "Nothing is wrong", "Endpoints (8)", "peak")
	tb.Until(`[...document.querySelectorAll('#details [role=cell]')].some((c) => c.textContent === '200 kbit/s')`)
	f.down(2)
	tb.Shows("#verdict", "degraded")
	tb.Shows("#details", "node3 is not connected to the store")
	tb.Until(`document.querySelector('#announce').textContent.includes('degraded')`)
	tb.Until(`document.querySelector('[data-kind="cell"][data-node="node3"][data-network="web"]').getAttribute('aria-label') === 'node3 in web: 2 endpoints, DOWN'`)
	tb.Click("#pause")
	f.fault(0, diag.Failed, 0, "", "another fault", "r")
	var text string
	tb.Eval(`new Promise((done) => setTimeout(() => done(document.querySelector('#details').innerText), 4000))`, &text)
	if strings.Contains(text, "another fault") {
		t.Error("the page goes on while it is paused")
	}
	tb.Click("#pause")
	tb.Shows("#details", "another fault")
}

func TestWhoIsAwayIsNamedAndTheLastStateStays(t *testing.T) {
	f := small()
	s := httptest.NewServer(f.handler())
	defer s.Close()
	tb := start(t).Open(t, s.URL+"/", browser.Look{Width: 1000, Height: 700})
	tb.Until(`document.querySelector('#lost').hidden`)
	f.mu.Lock()
	f.away = errors.Join(store.ErrUnavailable, errors.New("etcd has no leader"))
	f.mu.Unlock()
	tb.Shows("#lost", "etcd has no leader", "What you see is old")
	tb.Shows("#tiles", "62")
	f.mu.Lock()
	f.away = nil
	f.mu.Unlock()
	tb.Until(`document.querySelector('#lost').hidden`)
	s.Close()
	tb.Shows("#lost", "No answer from the daemon")
	tb.Quiet("Failed to load resource") // that is what the browser says of it
}

func TestTheKeyboardReachesEverything(t *testing.T) {
	tb := start(t).Open(t, broken().serve(t), browser.Look{Width: 1440, Height: 900})
	tb.Shows("#details", "Check node1")
	var order []string
	for range 16 {
		tb.Key("Tab")
		order = append(order, focused(tb))
	}
	all := strings.Join(order, "\n")
	at := 0
	for _, want := range []string{"Skip to the topology", "Skip to what is wrong", "Pause", "1 failed", "1 DOWN", "filter", "problems", "input|", "columnheader", "database"} {
		want = strings.Replace(want, "columnheader", "g||network web", 1)
		i := strings.Index(all[at:], want)
		if i < 0 {
			t.Fatalf("%q is not reached, or not in order:\n%s", want, all)
		}
		at += i
	}
	tb.Eval(`document.querySelector('#drawing [tabindex="0"]').focus()`, nil)
	for _, step := range []struct{ key, want string }{
		{"ArrowRight", "network database"},
		{"ArrowDown", "node1 in database: 3 endpoints"},
		{"ArrowDown", "node2 in database"},
		{"ArrowLeft", "node2 in web"},
		{"ArrowLeft", "node node2"},
		{"End", "node2 in queue"},
		{"ArrowDown", "node3 in queue"},
		{"ArrowLeft", "node3 in monitoring"},
		{"ArrowDown", "node3 in monitoring"}, // node4 and node5 do not have it
		{"Home", "node node3"},
		{"ArrowDown", "node node4: DOWN"},
	} {
		if tb.Key(step.key); !strings.Contains(focused(tb), step.want) {
			t.Fatalf("after %s: %s, want %s", step.key, focused(tb), step.want)
		}
	}
	tb.Key("Enter")
	tb.Until(`document.activeElement.tagName === 'H2' && document.activeElement.innerText === 'node4'`)
	tb.Key("Escape")
	tb.Until(`document.activeElement.getAttribute('aria-label')?.startsWith('node node4')`)
}

// accessible is what a screen reader is told.
func accessible(tb *browser.Tab) []node {
	var tree struct{ Nodes []node }
	tb.Call("Accessibility.getFullAXTree", nil, &tree)
	return tree.Nodes
}

type node struct {
	Ignored    bool
	Role, Name struct{ Value json.RawMessage }
}

func (n node) said() (role, name string) {
	_ = json.Unmarshal(n.Role.Value, &role) // what is no text has no name
	_ = json.Unmarshal(n.Name.Value, &name)
	return role, name
}

func TestAScreenReaderIsToldAllThatIsDrawn(t *testing.T) {
	tb := start(t).Open(t, broken().serve(t)+"#/network/web", browser.Look{Width: 1440, Height: 900})
	tb.Shows("#details", "Endpoints (8)")
	has := func(where string, wants ...string) {
		t.Helper()
		var all []string
		for _, n := range accessible(tb) {
			if n.Ignored {
				continue
			}
			role, name := n.said()
			all = append(all, role+" "+name)
			named := []string{"button", "link", "searchbox", "checkbox", "radio", "gridcell", "columnheader", "rowheader", "region", "complementary", "table", "grid"}
			if slices.Contains(named, role) && name == "" {
				t.Errorf("%s: a %s has no name", where, role)
			}
		}
		for _, want := range wants {
			if !slices.ContainsFunc(all, func(s string) bool { return strings.HasPrefix(s, want) }) {
				t.Errorf("%s: nothing is %q in:\n%s", where, want, strings.Join(all, "\n"))
			}
		}
	}
	has("drawing", "banner", "main", "region Summary", "region Topology", "complementary Details", "heading Topology", "heading web", "status",
		"searchbox Filter nodes and networks by name", "checkbox problems only", "radio Drawing",
		"grid Topology: hosts are rows", "columnheader network database: failed, 13 endpoints", "rowheader node node4: DOWN, 7 endpoints",
		"gridcell node4 in web: 1 endpoint, DOWN", "table Endpoints", "cell 10.10.0.2")
	tb.Click(`input[value="tables"]`)
	tb.Shows("#tables", "Networks (4)", "Nodes (5)", "first problem")
	has("tables", "table Networks", "table Nodes", "columnheader verdict", "cell web 1, database 2, queue 4", "cell DOWN", "cell failed")
	tb.Picture("tables")
	var count string
	tb.Eval(`document.querySelector('#nodes [role=table]').getAttribute('aria-rowcount')`, &count)
	if count != "6" {
		t.Errorf("the table of nodes says that it has %s rows, want 6 with its head", count)
	}
}

func TestFilterAndProblemsOnlyLeaveWhatTheySay(t *testing.T) {
	tb := start(t).Open(t, broken().serve(t), browser.Look{Width: 1440, Height: 900})
	drawn := func() (out struct{ Nodes, Networks []string }) {
		tb.Eval(`new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done({
			nodes: [...document.querySelectorAll('[data-kind="node"]')].map((e) => e.dataset.node),
			networks: [...document.querySelectorAll('[data-kind="network"]')].map((e) => e.dataset.network)}))))`, &out)
		return out
	}
	filter := func(text string) {
		tb.Eval(fmt.Sprintf(`(() => { const f = document.querySelector('#filter'); f.value = %q; f.dispatchEvent(new Event('input')); })()`, text), nil)
	}
	for text, want := range map[string]string{
		"NODE4": "{[node4] [web database monitoring queue]}", "monit": "{[node1 node2 node3] [monitoring]}", "192.0.2.5": "{[node5] [web database monitoring queue]}",
		"": "{[node1 node2 node3 node4 node5] [web database monitoring queue]}",
	} {
		if filter(text); fmt.Sprint(drawn()) != want {
			t.Errorf("filter %q leaves %v, want %s", text, drawn(), want)
		}
	}
	filter("no such thing")
	tb.Shows("#none", "Nothing is left by the filter")
	filter("")
	tb.Click("#tiles button")
	if got := fmt.Sprint(drawn()); got != "{[node1 node4] [web database queue]}" {
		t.Errorf("problems only leaves %s", got)
	}
}

// Whoever starts a container chooses its name.
func TestNamesAreTextWhateverTheySay(t *testing.T) {
	const hostile = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>"'&amp;`
	f := small()
	f.networks[0].Endpoints[0].Container, f.networks[0].Endpoints[0].Group = hostile, hostile
	f.networks[0].DockerNetworks = []diag.DockerNetwork{{Name: hostile, ID: "x"}}
	f.networks[0].Services = []diag.Service{{ID: "s", Name: hostile, Backends: []diag.Backend{{Task: "t", Name: hostile, State: hostile, Node: hostile}}}}
	f.networks[0].Kernel.Differences, f.networks[0].Kernel.Differing, f.networks[0].Kernel.InSync = []string{hostile}, 1, false
	f.fault(0, diag.Degraded, 0, "", hostile, hostile)
	f.networks[1].Network = hostile
	f.nodes[1].Name, f.nodes[1].Role, f.nodes[1].Problems = hostile, hostile, map[string]string{hostile: hostile}
	tb := start(t).Open(t, f.serve(t)+"#/network/web", browser.Look{Width: 1440, Height: 900})
	tb.Shows("#details", hostile, "Tasks of services")
	tb.Until(fmt.Sprintf(`[...document.querySelectorAll('#details [role=cell]')].some((c) => c.textContent === %q)`, hostile))
	for _, kind := range []string{"network", "node"} {
		tb.Eval(fmt.Sprintf(`location.hash = '#/%s/' + encodeURIComponent(%q)`, kind, hostile), nil)
		tb.Shows("#details h2", hostile)
	}
	tb.Click(`input[value="tables"]`)
	tb.Shows("#tables", hostile)
	var title string
	var images int
	tb.Eval("document.title", &title)
	tb.Eval("document.querySelectorAll('img, script, iframe').length", &images)
	if title == "owned" || images != 2 { // the logo, and the page's own script
		t.Errorf("title %q, %d images and scripts: a name has become markup", title, images)
	}
	tb.Eval(fmt.Sprintf(`(() => { const d = document.createElement('div'); d.innerHTML = %q; document.body.append(d); })()`, hostile), nil)
	if tb.Eval("document.querySelectorAll('img, script, iframe').length", &images); images <= 2 {
		t.Error("markup is not counted: the test proves nothing")
	}
	tb.Quiet("Content Security Policy", "Failed to load resource") // the policy stops even that one
	if tb.Eval("document.title", &title); title == "owned" {
		t.Error("the policy lets a handler in an attribute run")
	}
}

func TestNothingComesFromElsewhere(t *testing.T) {
	address := small().serve(t)
	tb := start(t).Open(t, address+"#/network/web", browser.Look{Width: 1440, Height: 900})
	tb.Shows("#details", "Endpoints (8)")
	var loaded []string
	tb.Eval(`performance.getEntriesByType('resource').map((e) => e.name)`, &loaded)
	for _, url := range loaded {
		if !strings.HasPrefix(url, address) {
			t.Errorf("%s is loaded", url)
		}
	}
	if len(loaded) < 6 {
		t.Errorf("only %v are seen", loaded)
	}
}

// Ratios of WCAG 2.2 §1.4.3 (text) and §1.4.11 (marks).
func TestColoursCanBeTold(t *testing.T) {
	b := start(t)
	address := broken().serve(t)
	for _, dark := range []bool{false, true} {
		tb := b.Open(t, address, browser.Look{Width: 1000, Height: 700, Dark: dark, Still: true})
		var bad []string
		tb.Eval(`(() => {
			const style = getComputedStyle(document.documentElement);
			const light = (name) => {
				const hex = style.getPropertyValue('--' + name).trim();
				const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255).map((c) => (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4));
				return .2126 * r + .7152 * g + .0722 * b;
			};
			const pairs = [['ink', 'pane'], ['ink', 'ground'], ['quiet', 'pane'], ['quiet', 'ground'], ['quiet', 'soft'], ['link', 'pane'], ['sent', 'pane'], ['received', 'pane']];
			for (const v of ['healthy', 'degraded', 'failed', 'unknown']) pairs.push([v, 'pane'], [v, v + '-soft'], ['ink', v + '-soft'], ['quiet', v + '-soft'], ['link', v + '-soft']);
			return pairs.map(([a, b]) => [a, b, (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05)])
				.filter(([, , ratio]) => !(ratio >= 4.5)).map((p) => p.join(' '));
		})()`, &bad)
		if len(bad) > 0 {
			t.Errorf("dark %v: too little contrast: %v", dark, bad)
		}
		var moving int
		tb.Eval(`[...document.querySelectorAll('*')].filter((e) => !['0s', ''].includes(getComputedStyle(e).transitionDuration) || getComputedStyle(e).animationName !== 'none').length`, &moving)
		if moving > 0 {
			t.Errorf("%d elements move, and the reader wants none to", moving)
		}
	}
}

func TestALargeClusterStaysSmooth(t *testing.T) {
	f := large()
	tb := start(t).Open(t, f.serve(t)+"#/network/web", browser.Look{Width: 1600, Height: 1000})
	tb.Shows("#tiles", "10,000", "300", "40")
	tb.Shows("#details", "Endpoints (4,000)")
	tb.Call("Performance.enable", map[string]any{"timeDomain": "threadTicks"}, nil) // a busy machine takes no part in it
	before := metrics(tb)
	var frames struct {
		Frames                int
		Median, P95, Longest  float64
		Elements, Rows, Cells int
	}
	// Both scroll at once, for three rounds of news.
	tb.Eval(`(async () => {
		const gaps = [], drawing = document.querySelector('#drawing'), table = [...document.querySelectorAll('#details .table')].at(-1);
		let last, longest = 0, down = 41;
		new PerformanceObserver((l) => l.getEntries().forEach((e) => { longest = Math.max(longest, e.duration); })).observe({ entryTypes: ['longtask'] });
		const end = performance.now() + 7000;
		await new Promise((done) => requestAnimationFrame(function step(now) {
			if (last !== undefined) gaps.push(now - last);
			last = now;
			if (drawing.scrollTop + drawing.clientHeight >= drawing.scrollHeight - 1) down = -41;
			if (drawing.scrollTop === 0) down = 41;
			drawing.scrollTop += down;
			drawing.scrollLeft += down / 5;
			table.scrollTop += down * 2;
			if (now < end) requestAnimationFrame(step); else done();
		}));
		gaps.sort((a, b) => a - b);
		return { frames: gaps.length, median: gaps[gaps.length >> 1], p95: gaps[Math.floor(gaps.length * .95)], longest,
			elements: document.querySelectorAll('*').length, rows: document.querySelectorAll('#details .rows > .row').length,
			cells: document.querySelectorAll('[data-kind="cell"]').length };
	})()`, &frames)
	after := metrics(tb)
	per := func(name string) float64 { return (after[name] - before[name]) / float64(frames.Frames) }
	work := 1000 * (per("ScriptDuration") + per("LayoutDuration") + per("RecalcStyleDuration"))
	t.Logf("%+v; per frame %.1f ms of CPU for script, style and layout, %.1f layouts", frames, work, per("LayoutCount"))
	if frames.Elements > 4000 || frames.Cells == 0 || frames.Rows == 0 {
		t.Errorf("%d elements: more is in the page than in sight, or nothing", frames.Elements)
	}
	// A frame has 16 ms at 60 Hz; 4 to 5 are used. How many frames there are depends on the machine's other work, too, and it draws
	// without a graphics card: those bounds only tell whether anything moves at all.
	if work > 12 || frames.Frames < 20 || frames.Median > 500 || frames.Longest > 3000 {
		t.Errorf("it is not smooth: %+v, %.1f ms of CPU per frame", frames, work)
	}
	if n := per("LayoutCount"); n > 4 {
		t.Errorf("%.1f layouts per frame: something reads the layout between writes", n)
	}
	tb.Eval(`document.querySelector('#drawing').scrollTop = 1e6`, nil)
	tb.Until(`document.querySelector('[data-kind="node"][data-node="node300"]')`)
}

// metrics are what the browser has counted of the page.
func metrics(tb *browser.Tab) map[string]float64 {
	var m struct {
		Metrics []struct {
			Name  string
			Value float64
		}
	}
	tb.Call("Performance.getMetrics", nil, &m)
	out := map[string]float64{}
	for _, x := range m.Metrics {
		out[x.Name] = x.Value
	}
	return out
}

// Pictures are for people: the test sees only that each has something to show.
func TestPicturesOfEachState(t *testing.T) {
	b := start(t)
	well, bad, big := small().serve(t), broken().serve(t), large().serve(t)
	degraded := small()
	degraded.down(3)
	degraded.fault(0, diag.Degraded, 1, diag.StateBehind, "node2 has applied revision 8840 of 8841: it may not know the newest endpoints", "see its daemon's log")
	empty := newFake(1, 0, nil, nil).serve(t)
	wide := browser.Look{Width: 1440, Height: 900}
	dark := browser.Look{Width: 1440, Height: 900, Dark: true}
	for name, c := range map[string]struct {
		address string
		as      browser.Look
	}{
		"light-healthy": {well, wide}, "dark-healthy": {well, dark}, "light-degraded": {degraded.serve(t), wide}, "light-failed": {bad, wide},
		"dark-failed": {bad + "#/network/database", dark}, "light-network": {well + "#/network/web", wide}, "light-node": {bad + "#/node/node4", wide},
		"large": {big, browser.Look{Width: 1600, Height: 1000}}, "large-network": {big + "#/network/web", browser.Look{Width: 1600, Height: 1000, Dark: true}},
		"narrow": {bad, browser.Look{Width: 400, Height: 860}}, "narrow-network": {bad + "#/network/web", browser.Look{Width: 400, Height: 2400}},
		"empty": {empty, browser.Look{Width: 1000, Height: 600}},
	} {
		tb := b.Open(t, c.address, c.as)
		if c.address != empty {
			tb.Shows("#tiles", "bit/s")
		}
		if strings.Contains(c.address, "/network/") {
			tb.Until(`document.querySelector('.spark polyline')?.getAttribute('points').includes(' ')`)
		}
		tb.Picture(name)
	}
}
