package store

// Isolation says how the endpoints of a network are kept from each other.
type Isolation struct {
	// Isolate: they reach only the gateway and the backends of services.
	Isolate bool `json:"isolate,omitempty"`
	// Allow are the rules, see package policy. With any, or with Isolate, what no rule allows is denied.
	Allow []string `json:"allow,omitempty"`
	// Limit is each endpoint's that has none of its own.
	Limit
}

// Limit is how fast an endpoint may send, and how fast it may be sent to. The zero Limit is none.
type Limit struct {
	// Rate in bits per second, Burst in bytes.
	Rate  uint64 `json:"rate,omitempty"`
	Burst uint32 `json:"burst,omitempty"`
}

// Judged says whether anything is denied in the network.
func (i Isolation) Judged() bool { return i.Isolate || len(i.Allow) > 0 }
