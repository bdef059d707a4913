// A flow's life: chosen at its first packet, remembered by two entries, ended with its connection or its backend.
#pragma once
#include "answer.h"

enum { UDP_IDLE = 300 * 1000 / 1074 }; // 300 s, as IPVS has it, in units of 2^30 ns: then the flow is chosen afresh

inline_ __u32 mix(__u32 h, __u32 v)
{
	h = (h ^ v) * 0x9e3779b1;
	return h ^ h >> 15;
}

inline_ __u32 hash(struct tuple *t, __u32 seed)
{
	__u32 h = mix(seed, t->client.w[3]);
	h = mix(h, t->client.w[2] ^ t->client.w[1]);
	h = mix(h, t->server.w[3]);
	h = mix(h, (__u32)t->client_port << 16 | t->server_port);
	h = (h ^ h >> 16) * 0x7feb352d;
	h = (h ^ h >> 15) * 0x846ca68b;
	return h ^ h >> 16;
}

// pick chooses a backend for a new flow; another try may be another one.
inline_ __u32 pick(struct vip *v, struct tuple *t, __u8 proto, __u32 try)
{
	__u32 i = hash(t, proto + (try << 8)) % SLOTS;
	asm volatile("" : "+r"(i)); // else the compiler leaves out the check that the verifier asks for
	return i < SLOTS ? v->slot[i] : 0;
}

// on_server and on_client are the two keys of a flow, each from the other.
inline_ struct tuple on_server(struct tuple *t, struct flow *f, struct backend *b)
{
	return (struct tuple){ t->client, b->addr, f->port, t->server_port };
}

inline_ struct tuple on_client(struct tuple *t, struct reverse *r)
{
	return (struct tuple){ t->client, r->vip, r->port, t->server_port };
}

// reserve gives the flow a source port of its own towards the backend. A container may use one port to the virtual
// address and straight to the same backend, and the two flows must not meet there: ours are outside the range that the
// kernel gives out (32768 to 60999, net.ipv4.ip_local_port_range). A privileged port stays one: NFS servers ask for it.
inline_ long reserve(__u8 proto, struct tuple *server, struct flow *f, struct reverse *r)
{
	__u32 low = ntohs(r->port) < 1024, base = low ? 512 : 1024, span = low ? 512 : 31744;
	__u32 h = bpf_get_prandom_u32();
	for (int i = 0; i < 8; i++) {
		f->port = server->client_port = htons(base + (h + i * 7919) % span);
		if (!put_reverse(proto, server, r, BPF_NOEXIST))
			return 0;
		struct reverse *taken = find_reverse(proto, server);
		if (!taken)
			continue;
		struct tuple of = on_client(server, taken);
		struct flow *other = find_flow(proto, &of);
		if (!other || other->port != f->port) // of a flow that is gone
			return put_reverse(proto, server, r, BPF_ANY);
	}
	return -1;
}

// begin makes the entries of a new flow to a backend; 0 is success.
inline_ long begin(struct __sk_buff *skb, __u8 proto, struct tuple *t, struct flow *f, struct backend *b)
{
	f->seen = now();
	f->port = t->client_port;
	f->device = skb->ifindex;
	sender(skb, f->mac);
	if (same(&b->addr, &t->client)) {
		struct tuple other = { t->client, t->server, t->server_port, t->client_port };
		f->kind = ANSWERS;
		put_flow(proto, &other, f);
		f->kind = HAIRPIN;
	} else {
		struct tuple server = on_server(t, f, b);
		struct reverse r = { .vip = t->server, .port = t->client_port };
		if (reserve(proto, &server, f, &r))
			return -1;
	}
	struct count *c = bpf_map_lookup_elem(&counts, &f->backend);
	if (c)
		c->flows++;
	return put_flow(proto, t, f);
}

// refresh, once a second, keeps a flow's other entry from eviction, or puts it back: replies may be rare or none.
inline_ void refresh(__u8 proto, struct tuple *t, struct flow *f, struct backend *b)
{
	__u32 time = now();
	if (f->seen == time)
		return;
	f->seen = time;
	if (f->kind == FORWARD) {
		struct tuple server = on_server(t, f, b);
		struct reverse r = { .vip = t->server, .port = t->client_port, .state = REPLIED };
		put_reverse(proto, &server, &r, BPF_NOEXIST);
	}
}

// udp_lives says whether a known UDP flow goes on; if not, it is chosen afresh.
inline_ int udp_lives(struct flow *f) { return now() - f->seen < UDP_IDLE; }

// connection_lives says whether the connection that a SYN finds goes on. If not, try is how often one was tried before.
inline_ int connection_lives(struct tuple *t, struct flow *f, struct backend *b, struct vip *v, __u8 *try)
{
	if (f->kind == ANSWERS)
		return 1;
	if (f->kind == HAIRPIN || f->state & FINISHED) // the client uses its port again
		return 0;
	struct tuple server = on_server(t, f, b);
	struct reverse *r = find_reverse(IPPROTO_TCP, &server);
	if (!r || r->state & FINISHED)
		return 0;
	if (r->state & REPLIED)
		return 1;
	// Asked again, and never an answer: the backend may be dead without anyone knowing. Try another, if there is one.
	for (int i = 1; i <= 8; i++) {
		*try = f->tries + i;
		if (pick(v, t, IPPROTO_TCP, *try) != f->backend)
			return 0;
	}
	return 1;
}

// forget drops a flow. If its backend is gone, its other entry is one that reserve finds to be nobody's.
inline_ void forget(__u8 proto, struct tuple *t, struct flow *f, struct backend *b)
{
	struct tuple server = *t;
	if (b)
		server = on_server(t, f, b);
	drop_flow(proto, t, &server);
}

// segment is what the end of a connection is known by.
struct segment { __u32 seq, ack, end; __u8 flags; };

inline_ struct segment segment(struct packet *p, struct tcphdr *h)
{
	__u32 seq = ntohl(h->seq);
	return (struct segment){ seq, ntohl(h->ack), seq + p->size - (h->doff >> 4) * 4 + 1, h->flags };
}

// closed notes that one side ends the connection, in fin and state, and whether it acknowledges the other side's end.
// It returns whether nothing more is to come: then the entries go, and need not push out others. Until all is
// acknowledged something may have to be sent again.
inline_ int closed(struct segment *s, __u32 *fin, __u8 *state, __u32 other_fin, __u8 *other_state)
{
	if (s->flags & RST)
		return 1;
	if (s->flags & FIN) {
		*fin = s->end;
		*state |= FINISHED;
	}
	if (*other_state & FINISHED && s->flags & ACK && s->ack == other_fin)
		*other_state |= ACKED;
	return *state & *other_state & ACKED;
}

// client_closes looks at what the client's segment means for its connection's end.
inline_ void client_closes(struct packet *p, struct tcphdr *h, struct tuple *t, struct flow *f, struct backend *b)
{
	if (f->kind != FORWARD || !(h->flags & (FIN | RST) || f->state & FINISHED))
		return;
	struct tuple server = on_server(t, f, b);
	struct reverse *r = find_reverse(IPPROTO_TCP, &server);
	struct segment s = segment(p, h);
	if (r && closed(&s, &f->fin, &f->state, r->fin, &r->state))
		drop_flow(IPPROTO_TCP, t, &server);
}

// server_closes does so with the backend's segment.
inline_ void server_closes(struct packet *p, struct tcphdr *h, struct tuple *t, struct reverse *r)
{
	if (!(h->flags & (FIN | RST) || r->state & FINISHED))
		return;
	struct tuple client = on_client(t, r);
	struct flow *f = find_flow(IPPROTO_TCP, &client);
	struct segment s = segment(p, h);
	if (f && closed(&s, &r->fin, &r->state, f->fin, &f->state))
		drop_flow(IPPROTO_TCP, &client, t);
}
