package convert

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

const (
	pieceSize  = 1 << 20 // bytes of data in a piece, at most
	pieceSlack = 16      // Random.ReadAt may overwrite so much behind a buffer
	readAhead  = 8       // pieces in flight
)

// FromRandom makes a source that reads ahead of r with several goroutines.
func FromRandom(r Random) Source { return &randomSource{r} }

type randomSource struct{ r Random }

func (s *randomSource) Size() int64  { return s.r.Size() }
func (s *randomSource) Close() error { return s.r.Close() }

// job is one piece on its way: made by the feeder, filled by a reader, handed
// over in the feeder's order.
type job struct {
	piece Piece
	buf   []byte
	ready chan error
}

// Stream has one feeder, which cuts the runs into pieces, readAhead readers,
// and one receiver, which calls fn. Buffers go round through free, which
// bounds the memory. All have ended when it returns.
func (s *randomSource) Stream(ctx context.Context, fn func(Piece) error) error {
	g, ctx := errgroup.WithContext(ctx)
	order, work := make(chan *job, readAhead), make(chan *job, readAhead)
	free := make(chan []byte, readAhead+1)
	for range cap(free) {
		free <- make([]byte, pieceSize+pieceSlack)
	}
	g.Go(func() error {
		defer close(order)
		defer close(work)
		return s.feed(ctx, free, order, work)
	})
	for range readAhead {
		g.Go(func() error {
			for j := range work {
				j.ready <- s.read(j)
			}
			return nil
		})
	}
	g.Go(func() error {
		for j := range order {
			if err := receive(ctx, j, fn); err != nil {
				return err
			}
			if j.buf != nil {
				free <- j.buf
			}
		}
		return ctx.Err()
	})
	return g.Wait()
}

// receive waits for a job and hands it over.
func receive(ctx context.Context, j *job, fn func(Piece) error) error {
	if j.ready != nil {
		select {
		case err := <-j.ready:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fn(j.piece)
}

func (s *randomSource) read(j *job) error {
	p := &j.piece
	p.Bytes = j.buf[:p.Len]
	if err := s.r.ReadAt(p.Bytes, p.Off); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", p.Len, p.Off, err)
	}
	return nil
}

// writeZeros writes zeros in pieces.
func writeZeros(write func(p []byte, off int64) error, off, n int64) error {
	for n > 0 {
		part := min(n, int64(len(zeros)))
		if err := write(zeros[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// zeros is never written to.
var zeros = make([]byte, pieceSize)

// feed cuts the image into pieces: data at multiples of pieceSize, zeros as
// they come.
func (s *randomSource) feed(ctx context.Context, free chan []byte, order, work chan<- *job) error {
	size := s.r.Size()
	for off := int64(0); off < size; {
		run, err := s.r.Next(ctx, off)
		if err != nil {
			return fmt.Errorf("look for data at %d: %w", off, err)
		}
		if run.Off != off || run.Len <= 0 || run.Len > size-off {
			return fmt.Errorf("look for data at %d: source answered %d bytes at %d", off, run.Len, run.Off)
		}
		for end := off + run.Len; off < end; {
			j := &job{piece: Piece{Run: Run{off, end - off, run.Kind}}}
			if run.Kind == Data {
				j.piece.Len = min(end-off, pieceSize-off%pieceSize)
				if err := j.start(ctx, free, work); err != nil {
					return err
				}
			}
			select {
			case order <- j:
			case <-ctx.Done():
				return ctx.Err()
			}
			off += j.piece.Len
		}
	}
	return nil
}

// start gives a job a buffer and to a reader.
func (j *job) start(ctx context.Context, free <-chan []byte, work chan<- *job) error {
	j.ready = make(chan error, 1)
	select {
	case j.buf = <-free:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case work <- j:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
