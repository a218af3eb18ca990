package volume

import (
	"context"
	"errors"
	"sync"

	"github.com/fsximg/fsx/pkg/layout"
)

// pauseRoom is how many blocks writers may add to the buffers while the log stands
// still.
const pauseRoom = 256

// pause is a request to the log's goroutine to stand still.
type pause struct {
	log    *logger // set when it does
	resume chan struct{}
}

// pauseLog has the log's goroutine commit everything and stand still until resume
// is called. Whoever called it has the logger meanwhile; writers go on as long as
// the buffer has room. The caller holds upkeep, and goes on holding it.
func (v *Volume) pauseLog(ctx context.Context) (l *logger, resume func(), err error) {
	for {
		if err := v.catchUpLocked(ctx, 0); err != nil {
			return nil, nil, err
		}
		p := &pause{resume: make(chan struct{})}
		err := v.ask(ctx, false, func() (control, error) { return control{pause: p}, nil })
		if errors.Is(err, errMoved) {
			continue // a snapshot was made meanwhile
		}
		if err != nil {
			return nil, nil, err
		}
		return p.log, sync.OnceFunc(func() { close(p.resume) }), nil
	}
}

// pause stands still. What was sealed before is committed, and frozen for a
// checkpoint.
func (l *logger) pause(p *pause) error {
	v := l.v
	if l.w.Begun() && !l.w.Empty() {
		if err := l.commit(); err != nil {
			return err
		}
	}
	v.mu.Lock()
	// Writers go on in the buffer as long as it has room, but not beyond what
	// whoever has the logger may have to find room for in another segment.
	v.capacity = min(l.w.Capacity(), logNeed(v.pendingLocked())+pauseRoom)
	if !v.overlay.empty() {
		l.freezeLocked(nil)
	}
	p.log = l
	v.answerLocked(nil)
	v.mu.Unlock()
	<-p.resume
	return nil
}

// settle brings everything that a log which stands still has into the index, so
// that the head names its last record. The caller holds upkeep.
func (v *Volume) settle(ctx context.Context, tail layout.Position) error {
	if err := v.catchUpLocked(ctx, 0); err != nil {
		return err
	}
	if v.headNow().Log == tail {
		return nil
	}
	return v.checkpointOne(ctx, frozenState{at: tail}, false)
}
