package config

import (
	"cmp"
	"fmt"
	"strings"
)

// Markdown is the text of docs/configuration.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString("# Configuration\n\n" +
		"One host needs no setting. Each setting is a flag of `netdriver run`, an environment variable and a key of the\n" +
		"YAML file given by `--config` or `NETDRIVER_CONFIG` (`" + DefaultFile + "` if that exists). A flag wins\n" +
		"over the environment, the environment over the file, the file over the default. A name that is not in this table\n" +
		"is an error.\n\n" +
		"| flag | environment | default | what for | allowed |\n|---|---|---|---|---|\n")
	for _, s := range table() {
		shown := cmp.Or(s.shown, s.fallback, "none")
		if s.shown == "" && s.fallback != "" {
			shown = "`" + shown + "`"
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | %s | %s | %s |\n", s.name, s.env(), shown, s.help, s.allowed)
	}
	b.WriteString("\nThe same in a file, where a list may be written as one:\n\n```yaml\n" + example + "```\n\n" +
		"`netdriver inspect`, `networks` and `nodes` use `run-dir` only, from the same sources.\n")
	return b.String()
}

// example is a file that Load accepts; a test holds that.
const example = `underlay: eth0
store:
- http://192.0.2.1:2379
- http://192.0.2.2:2379
vxlan-port: 4790
log-level: debug
`
