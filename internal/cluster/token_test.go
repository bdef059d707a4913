package cluster

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func fixedToken() Token {
	return Token{
		ID: "abcdefghijkl", Secret: bytes.Repeat([]byte{1}, 32), Authority: bytes.Repeat([]byte{2}, 32),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:4791"), netip.MustParseAddrPort("[2001:db8::1]:4791")},
		Expires:   start,
	}
}

// A token that was given to an operator stays good when the members are upgraded.
func TestTokensOfThisVersionStayReadable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/token.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := fixedToken().String() + "\n"; got != string(text) {
		t.Errorf("the token is spelt\n%s, want\n%s", got, text)
	}
	got, err := ParseToken(string(text))
	if diff := cmp.Diff(fixedToken(), got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestANewTokenIsOneWordThatIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	a := testAuthority(t)
	first, err := newToken(a, fixedToken().Endpoints, start)
	if err != nil {
		t.Fatal(err)
	}
	second, err := newToken(a, fixedToken().Endpoints, start)
	if err != nil || first.ID == second.ID || bytes.Equal(first.Secret, second.Secret) {
		t.Errorf("two tokens share a part: %v", err)
	}
	if s := first.String(); strings.ContainsAny(s, " \n\"'$\\`") {
		t.Errorf("%q cannot be pasted into a shell", s)
	}
	got, err := ParseToken(" " + first.String() + "\n")
	if diff := cmp.Diff(first, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if hash := a.Hash(); !bytes.Equal(hash[:], got.Authority) {
		t.Error("the token names another authority")
	}
}

func TestWhatIsNoTokenIsRefusedWithTheRemedy(t *testing.T) {
	t.Parallel()
	with := func(change func(*Token)) string {
		tok := fixedToken()
		change(&tok)
		return tok.String()
	}
	good := fixedToken().String()
	if _, err := ParseToken(good); err != nil {
		t.Fatal(err)
	}
	spelt := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return tokenPrefix + base64.RawURLEncoding.EncodeToString(text)
	}
	for name, text := range map[string]string{
		"empty":             "",
		"short":             "net",
		"a swarm's":         "SWMTKN-1-abc",
		"later version":     strings.Replace(good, tokenPrefix, "netdriver2-", 1),
		"prefix only":       tokenPrefix,
		"cut":               good[:len(good)-7],
		"space inside":      good[:40] + " " + good[40:],
		"no base64":         good + "!",
		"no object":         spelt([]int{1}),
		"no id":             with(func(t *Token) { t.ID = "" }),
		"short secret":      with(func(t *Token) { t.Secret = t.Secret[:31] }),
		"no authority":      with(func(t *Token) { t.Authority = nil }),
		"no endpoint":       with(func(t *Token) { t.Endpoints = nil }),
		"invalid endpoints": spelt(map[string]any{"e": []string{"nowhere"}}),
	} {
		_, err := ParseToken(text)
		if !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), "copy the whole line") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(fixedToken().String())
	f.Add(tokenPrefix)
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ParseToken(text)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.String()); err != nil || again.ID != tok.ID {
			t.Errorf("%+v: %v", tok, err)
		}
	})
}
