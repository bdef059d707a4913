package diag

import (
	"fmt"
	"slices"
)

// Finding is one thing that is wrong, or that could not be found out.
type Finding struct {
	// Check names what was looked at, as in the table of docs/troubleshooting.md.
	Check    string  `json:"check"`
	Severity Verdict `json:"severity"`
	// Place is where: a node, and on it a device, a file or a setting.
	Place string `json:"place"`
	// Cause says what is wrong, Evidence by what it was seen, Remedy what to do.
	Cause    string   `json:"cause"`
	Evidence []string `json:"evidence,omitempty"`
	Remedy   string   `json:"remedy"`
}

// because returns f with more evidence.
func (f Finding) because(format string, args ...any) Finding {
	f.Evidence = append(slices.Clone(f.Evidence), fmt.Sprintf(format, args...))
	return f
}

// verdictOf is the worst of all findings.
func verdictOf(all []Finding) Verdict {
	v := Healthy
	for _, f := range all {
		v = worse(v, f.Severity)
	}
	return v
}

// finding makes one; format and args are its cause.
func finding(check string, severity Verdict, place, remedy, format string, args ...any) Finding {
	return Finding{Check: check, Severity: severity, Place: place, Remedy: remedy, Cause: fmt.Sprintf(format, args...)}
}
