package etcd

import (
	"context"
	"log/slog"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// maxAttr is how much of one value is logged, in bytes: etcd's complaint about a slow request has the whole request.
const maxAttr = 200

// logger hands etcd's warnings and errors to log. What etcd calls information is of no use to an operator of netdriver.
// While closing is set nothing is logged: etcd reports each listener that it closes itself as an error.
func logger(log *slog.Logger, closing *atomic.Bool) *zap.Logger {
	return zap.New(bridge{log.With("part", "etcd"), closing})
}

// bridge is a zapcore.Core over slog.
type bridge struct {
	log     *slog.Logger
	closing *atomic.Bool
}

func (b bridge) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel && !b.closing.Load() }

func (b bridge) With(fields []zapcore.Field) zapcore.Core {
	return bridge{b.log.With(attrs(fields)...), b.closing}
}

func (b bridge) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return ce.AddCore(e, b)
	}
	return ce
}

func (b bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	b.log.Log(context.Background(), level, e.Message, attrs(fields)...)
	return nil
}

func (b bridge) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	var as []any
	for _, f := range fields {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			if text, ok := v.(string); ok && len(text) > maxAttr {
				v = text[:maxAttr] + "…"
			}
			as = append(as, slog.Any(f.Key, v))
		}
	}
	return as
}
