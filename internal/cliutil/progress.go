package cliutil

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

const (
	progressDelay = time.Second     // work that is done sooner shows nothing
	progressPlain = 5 * time.Second // between lines of --progress=plain
	progressTick  = 200 * time.Millisecond
)

// UnknownTotal is the total of work whose end is not known.
const UnknownTotal = -1

// Progress shows how far a piece of work has come, in bytes. Its methods are
// safe for concurrent use.
type Progress struct {
	label       string
	w           io.Writer
	start       time.Time
	done, total atomic.Int64
	stop        chan struct{}
	wait        sync.WaitGroup
}

// NewProgress starts to show progress on stderr as the options ask for; Stop
// ends it. The total may be UnknownTotal, or 0 until Set tells it.
func (e *Env) NewProgress(label string, total int64) *Progress {
	p := &Progress{label: label, w: e.Stderr, start: time.Now(), stop: make(chan struct{})}
	p.total.Store(total)
	var show func()
	switch {
	case e.quiet || e.progress == "none":
		return p
	case e.progress == "plain":
		show = p.plain
	case isTerminal(e.Stderr):
		show = p.bar
	default:
		return p
	}
	p.wait.Go(show)
	return p
}

// Add counts n more bytes as done.
func (p *Progress) Add(n int64) { p.done.Add(n) }

// Set replaces both numbers.
func (p *Progress) Set(done, total int64) {
	p.done.Store(done)
	p.total.Store(total)
}

// Stop takes the display away and waits until it has gone.
func (p *Progress) Stop() {
	close(p.stop)
	p.wait.Wait()
}

func (p *Progress) plain() {
	t := time.NewTicker(progressPlain)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			fmt.Fprintln(p.w, p.line(time.Since(p.start)))
		}
	}
}

// line is what --progress=plain says after the given time.
func (p *Progress) line(elapsed time.Duration) string {
	done, total := p.done.Load(), p.total.Load()
	rate := float64(done) / elapsed.Seconds()
	s := fmt.Sprintf("%s: %s", p.label, FormatSize(done))
	if total > 0 {
		s += fmt.Sprintf(" of %s (%d%%)", FormatSize(total), done*100/total)
	}
	s += fmt.Sprintf(", %s/s", FormatSize(int64(rate)))
	if total > done && rate > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		s += fmt.Sprintf(", %s left", left.Round(time.Second))
	}
	return s
}

func (p *Progress) bar() {
	select {
	case <-p.stop:
		return
	case <-time.After(progressDelay):
	}
	c := mpb.New(mpb.WithOutput(p.w), mpb.WithWidth(32))
	b := p.newBar(c)
	b.SetCurrent(p.done.Load())
	t := time.NewTicker(progressTick)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			b.Abort(true)
			c.Wait()
			return
		case <-t.C:
			if total := p.total.Load(); total > 0 {
				b.SetTotal(total, false)
			}
			b.SetCurrent(p.done.Load())
		}
	}
}

// newBar is a bar with rate and time left, or, where the end is not known,
// only a rate.
func (p *Progress) newBar(c *mpb.Progress) *mpb.Bar {
	rate := decor.NewAverageSpeed(decor.SizeB1024(0), "  % .1f", p.start)
	total := p.total.Load()
	if total == UnknownTotal {
		return c.New(0, mpb.NopStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(p.label+" "), decor.CurrentKibiByte("% .1f"), rate))
	}
	return c.New(max(total, 0), mpb.BarStyle(), mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(p.label+" "), decor.CountersKibiByte("% .1f / % .1f ")),
		mpb.AppendDecorators(decor.Percentage(), rate,
			decor.Name("  "), decor.NewAverageETA(decor.ET_STYLE_GO, p.start, nil), decor.Name(" left")))
}
