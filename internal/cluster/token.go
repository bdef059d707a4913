package cluster

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// tokenPrefix begins every token, with the version of what follows.
const tokenPrefix = "netdriver1-"

// DefaultTokenLife is how long a token lets nodes join if nothing else is said.
const DefaultTokenLife = 24 * time.Hour

// Token is what a new node needs to join: where, whom to trust there, and what to be trusted for.
type Token struct {
	// ID names the token's record in the store, which has the hash of Secret.
	ID string `json:"i"`
	// Secret is 32 random bytes.
	Secret []byte `json:"s"`
	// Authority is the SHA-256 of the authority's certificate.
	Authority []byte `json:"a"`
	// Endpoints are where members listen for nodes that join.
	Endpoints []netip.AddrPort `json:"e"`
	// Expires is by the clock of the member that made it; only members judge by it.
	Expires time.Time `json:"x"`
}

// ErrToken is wrapped by the error of a text that is no token.
var ErrToken = errors.New("no token of `netdriver cluster token`")

func newToken(a *Authority, endpoints []netip.AddrPort, expires time.Time) (Token, error) {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails (crypto/rand)
	hash := a.Hash()
	return Token{
		ID: strings.ToLower(rand.Text()[:12]), Secret: secret, Authority: hash[:], Endpoints: endpoints,
		Expires: expires.Truncate(time.Second).UTC(),
	}, nil
}

// String is the token as users copy it: one word.
func (t Token) String() string {
	text, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("encode a token: %v", err)) // only plain fields: cannot happen
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(text)
}

// ParseToken undoes String.
func ParseToken(s string) (Token, error) {
	var t Token
	text, found := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !found {
		return t, fmt.Errorf("%w: it begins with %q, want %q; copy the whole line", ErrToken, s[:min(len(s), 11)],
			tokenPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return t, fmt.Errorf("%w: %w; copy the whole line", ErrToken, err)
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("%w: %w; copy the whole line", ErrToken, err)
	}
	if t.ID == "" || len(t.Secret) != 32 || len(t.Authority) != sha256.Size || len(t.Endpoints) == 0 {
		return t, fmt.Errorf("%w: a part is missing; copy the whole line", ErrToken)
	}
	return t, nil
}
