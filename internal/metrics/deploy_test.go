package metrics

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const deploy = "../../deploy/"

// promtool runs Prometheus's own judge of files.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPrometheusTakesTheRulesAndTheyFireAsTheyShould(t *testing.T) {
	promtool(t, "check", "config", deploy+"prometheus.yml")
	promtool(t, "check", "rules", deploy+"netdriver.rules.yml")
	promtool(t, "test", "rules", deploy+"netdriver.rules.test.yml")
}

// alert is one rule.
type alert struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct{ Groups []struct{ Rules []alert } }
	text, err := os.ReadFile(deploy + "netdriver.rules.yml")
	if err == nil {
		err = yaml.Unmarshal(text, &file)
	}
	if err != nil || len(file.Groups) != 1 || len(file.Groups[0].Rules) < 10 {
		t.Fatalf("%+v, error %v", file, err)
	}
	return file.Groups[0].Rules
}

func TestEachAlertIsTestedAndSaysHowBadItIsAndWhatToDo(t *testing.T) {
	tests, err := os.ReadFile(deploy + "netdriver.rules.test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts(t) {
		if !strings.Contains(string(tests), `alertname="`+a.Alert+`"`) {
			t.Errorf("%s: no test makes it fire", a.Alert)
		}
		if s := a.Labels["severity"]; s != "page" && s != "ticket" {
			t.Errorf("%s: severity %q", a.Alert, s)
		}
		if a.Annotations["summary"] == "" || len(a.Annotations["description"]) < 40 {
			t.Errorf("%s: annotations %q", a.Alert, a.Annotations)
		}
	}
}

// panel is one of the dashboard's.
type panel struct {
	Title, Type, Description string
	GridPos                  struct{ X, Y, W, H int }
	Targets                  []struct{ Expr string }
}

func dashboard(t *testing.T) []panel {
	t.Helper()
	var board struct {
		UID        string
		Panels     []panel
		Templating struct{ List []struct{ Query any } }
	}
	text, err := os.ReadFile(deploy + "grafana.json")
	if err == nil {
		err = json.Unmarshal(text, &board)
	}
	if err != nil || board.UID != "netdriver" || len(board.Panels) < 15 || len(board.Templating.List) != 2 {
		t.Fatalf("%+v, error %v", board, err)
	}
	return board.Panels
}

// expressions are those of all rules and panels, by where they stand, with Grafana's variables filled in.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, a := range alerts(t) {
		out[a.Alert] = a.Expr
	}
	for _, p := range dashboard(t) {
		for i, x := range p.Targets {
			out[fmt.Sprintf("%s %d", p.Title, i)] = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(x.Expr)
		}
	}
	return out
}

func TestEveryExpressionNamesMetricsAndLabelsThatThereAre(t *testing.T) {
	m, _ := daemon(t)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{"up": nil} // Prometheus's own
	for _, f := range families {
		var names []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			names = append(names, l.GetName())
		}
		known[f.GetName()] = names
		known[f.GetName()+"_bucket"] = append(slices.Clone(names), "le")
	}
	metric, label := regexp.MustCompile(`\b(netdriver_[a-z_]+|up)\b(?:\{([^}]*)\})?`), regexp.MustCompile(`([a-z]+)(?:=|!)`)
	grouping := regexp.MustCompile(`by \(([a-z, ]+)\)`)
	used := map[string]bool{}
	for where, expr := range expressions(t) {
		may := []string{"instance", "job"}
		for _, use := range metric.FindAllStringSubmatch(expr, -1) {
			labels, there := known[use[1]]
			if !there {
				t.Errorf("%s: there is no metric %s", where, use[1])
			}
			used[strings.TrimSuffix(use[1], "_bucket")] = true
			may = append(may, labels...)
			for _, l := range label.FindAllStringSubmatch(use[2], -1) {
				if !slices.Contains(append([]string{"instance", "job"}, labels...), l[1]) {
					t.Errorf("%s: %s has no label %s", where, use[1], l[1])
				}
			}
		}
		for _, by := range grouping.FindAllStringSubmatch(expr, -1) {
			for l := range strings.SplitSeq(by[1], ", ") {
				if !slices.Contains(may, l) {
					t.Errorf("%s: its metrics have no label %s", where, l)
				}
			}
		}
	}
	if len(used) < 20 {
		t.Errorf("only %v are used: the expressions are not read as they are written", slices.Sorted(maps.Keys(used)))
	}
}

func TestPrometheusUnderstandsEveryExpressionOfTheDashboard(t *testing.T) {
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for _, expr := range expressions(t) {
		rules = append(rules, rule{fmt.Sprintf("panel:%d", len(rules)), expr})
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", file)
}

func TestThePanelsOfTheDashboardDoNotOverlapAndSayWhatTheyShow(t *testing.T) {
	taken := map[[2]int]string{}
	for _, p := range dashboard(t) {
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%q and %q are both at %d, %d", p.Title, other, x, y)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && (p.Description == "" || len(p.Targets) == 0) {
			t.Errorf("%q says nothing", p.Title)
		}
	}
}
