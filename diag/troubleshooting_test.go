package diag

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestTroubleshootingNamesEveryCheckAndEveryField(t *testing.T) {
	b, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, c := range checks() {
		if !strings.Contains(text, "| `"+c.name+"` |") {
			t.Errorf("the check %s is not in the table", c.name)
		}
	}
	n := 0
	for _, typ := range []reflect.Type{reflect.TypeFor[CheckReport](), reflect.TypeFor[Trace](), reflect.TypeFor[DiffReport]()} {
		for _, name := range fields(typ) {
			n++
			if !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, "`"+name+"[]`") {
				t.Errorf("the field %s of %s is not named", name, typ.Name())
			}
		}
	}
	if n < 30 {
		t.Errorf("only %d fields were found", n)
	}
}
