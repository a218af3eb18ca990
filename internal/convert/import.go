package convert

import (
	"bytes"
	"context"
	"fmt"
)

// Device is the part of a volume that images are written to and read from.
type Device interface {
	Size() int64
	// ReadAt fills p or fails; it may overwrite p[len(p):len(p)+16].
	ReadAt(p []byte, off int64, nowait bool) error
	WriteAt(p []byte, off int64, nowait bool) error
	ZeroAt(off, n int64, noHole bool) error
	Flush() error
	// Status calls fn with consecutive runs from off on, until fn returns
	// false or n bytes are covered.
	Status(off, n int64, fn func(length int64, hole, zero bool) bool) error
}

// compareBlock is the unit in which old and new contents are compared: the
// store's block.
const compareBlock = 4096

// Report is what an import did, in bytes of the volume.
type Report struct {
	Source  int64 // length of the source
	Written int64 // differed, or was new
	Zeroed  int64 // held something and is zero now
	Kept    int64 // was the same already
}

// importer writes a stream to a device.
type importer struct {
	dev    Device
	old    []byte
	report Report
}

// Import makes dev's contents those of src, followed by zeros. Only blocks
// that differ are written; zeros are not stored. src must not be larger than
// dev, which is known before anything is written unless src is a pipe. An
// import that fails leaves dev with a part of it.
func Import(ctx context.Context, src Source, dev Device, progress func(n int64)) (Report, error) {
	if src.Size() > dev.Size() {
		return Report{}, fmt.Errorf("%w: %d bytes into %d", ErrTooLarge, src.Size(), dev.Size())
	}
	if progress == nil {
		progress = func(int64) {}
	}
	im := &importer{dev: dev, old: make([]byte, pieceSize+pieceSlack)}
	err := src.Stream(ctx, func(p Piece) error {
		if p.Off+p.Len > dev.Size() {
			return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, dev.Size())
		}
		im.report.Source = p.Off + p.Len
		if p.Kind != Data {
			return zeroSteps(ctx, p.Run, im.zero, progress)
		}
		defer progress(p.Len)
		return im.data(p)
	})
	if err != nil {
		return im.report, err
	}
	rest := Run{im.report.Source, dev.Size() - im.report.Source, Hole}
	if err := zeroSteps(ctx, rest, im.zero, func(int64) {}); err != nil {
		return im.report, err
	}
	if err := ctx.Err(); err != nil {
		return im.report, err
	}
	if err := dev.Flush(); err != nil {
		return im.report, fmt.Errorf("flush volume: %w", err)
	}
	return im.report, nil
}

// Empty is whether all of dev is zero, going by its map alone.
func Empty(dev Device) (bool, error) {
	empty := true
	err := dev.Status(0, dev.Size(), func(_ int64, _, zero bool) bool {
		empty = zero
		return empty
	})
	return empty, err
}

// zero zeroes what holds something.
func (im *importer) zero(off, n int64) error {
	var runs []Run
	err := im.status(off, n, func(r Run) {
		if r.Kind == Data {
			runs = append(runs, r)
		} else {
			im.report.Kept += r.Len
		}
	})
	if err != nil {
		return err
	}
	for _, r := range runs {
		if err := im.dev.ZeroAt(r.Off, r.Len, false); err != nil {
			return fmt.Errorf("zero %d bytes at %d: %w", r.Len, r.Off, err)
		}
		im.report.Zeroed += r.Len
	}
	return nil
}

// status is the device's Status in runs that cover exactly the range.
func (im *importer) status(off, n int64, fn func(Run)) error {
	at := off
	err := im.dev.Status(off, n, func(length int64, hole, zero bool) bool {
		r := Run{at, min(length, off+n-at), Data}
		if zero {
			r.Kind = Zero
		}
		fn(r)
		at += r.Len
		return at < off+n
	})
	if err != nil {
		return fmt.Errorf("look at volume at %d: %w", off, err)
	}
	if at < off+n {
		return fmt.Errorf("look at volume at %d: answered %d of %d bytes", off, at-off, n)
	}
	return nil
}

// data compares a piece with what is there and writes what differs.
func (im *importer) data(p Piece) error {
	old := im.old[:p.Len]
	var runs []Run
	if err := im.status(p.Off, p.Len, func(r Run) { runs = append(runs, r) }); err != nil {
		return err
	}
	for _, r := range runs {
		part := old[r.Off-p.Off:][:r.Len]
		if r.Kind != Data {
			clear(part)
		} else if err := im.read(part, r.Off); err != nil {
			return err
		}
	}
	return im.writeDiffering(p, old)
}

// read reads into a part of old without touching what lies behind it.
func (im *importer) read(part []byte, off int64) error {
	var saved [pieceSlack]byte
	behind := part[len(part):min(cap(part), len(part)+pieceSlack)]
	n := copy(saved[:], behind)
	err := im.dev.ReadAt(part, off, false)
	copy(behind, saved[:n])
	if err != nil {
		return fmt.Errorf("read volume at %d: %w", off, err)
	}
	return nil
}

// writeDiffering writes runs of blocks that are not as in old.
func (im *importer) writeDiffering(p Piece, old []byte) error {
	flush := func(from, to int64) error {
		if from == to {
			return nil
		}
		if err := im.dev.WriteAt(p.Bytes[from:to], p.Off+from, false); err != nil {
			return fmt.Errorf("write volume at %d: %w", p.Off+from, err)
		}
		im.report.Written += to - from
		return nil
	}
	start := int64(0) // of the differing run that is open
	for at := int64(0); at < p.Len; {
		end := min(p.Len, (p.Off+at)/compareBlock*compareBlock+compareBlock-p.Off)
		if bytes.Equal(p.Bytes[at:end], old[at:end]) {
			if err := flush(start, at); err != nil {
				return err
			}
			im.report.Kept += end - at
			start = end
		}
		at = end
	}
	return flush(start, p.Len)
}

// FromDevice makes a source of a volume. Closing it does not close the device.
func FromDevice(dev Device) Source { return FromRandom(&deviceSource{dev: dev}) }

type deviceSource struct {
	dev  Device
	runs []Run
}

func (d *deviceSource) Size() int64                      { return d.dev.Size() }
func (d *deviceSource) Close() error                     { return nil }
func (d *deviceSource) ReadAt(p []byte, off int64) error { return d.dev.ReadAt(p, off, false) }

// maxRuns bounds what Next keeps of a finely divided volume.
const maxRuns = 4096

func (d *deviceSource) Next(_ context.Context, off int64) (Run, error) {
	if len(d.runs) == 0 {
		at, size := off, d.dev.Size()
		err := d.dev.Status(off, size-off, func(n int64, hole, zero bool) bool {
			r := Run{at, min(n, size-at), Data}
			if zero && hole {
				r.Kind = Hole
			} else if zero {
				r.Kind = Zero
			}
			d.runs = append(d.runs, r)
			at += r.Len
			return len(d.runs) < maxRuns
		})
		if err != nil {
			return Run{}, err
		}
		if len(d.runs) == 0 {
			return Run{}, fmt.Errorf("status at %d: no answer", off)
		}
	}
	r := d.runs[0]
	d.runs = d.runs[1:]
	return r, nil
}
