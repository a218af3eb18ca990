package metadb

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// badgerLog hands Badger's messages to slog. What Badger calls information is
// a developer's chatter here.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) at(level slog.Level, format string, args []any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	msg := strings.TrimSpace(fmt.Sprintf(format, args...))
	if msg != "" {
		l.log.Log(context.Background(), level, "badger: "+msg)
	}
}

func (l badgerLog) Errorf(format string, args ...any)   { l.at(slog.LevelError, format, args) }
func (l badgerLog) Warningf(format string, args ...any) { l.at(slog.LevelWarn, format, args) }
func (l badgerLog) Infof(format string, args ...any)    { l.at(slog.LevelDebug, format, args) }
func (l badgerLog) Debugf(string, ...any)               {}
