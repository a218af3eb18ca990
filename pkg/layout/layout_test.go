package layout_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fsximg/fsx/pkg/layout"
)

// sign is a MAC under a key of the test's own.
func sign(parts ...[]byte) (mac [32]byte) {
	h := hmac.New(sha256.New, []byte("test key"))
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(mac[:0])
	return mac
}

func random[T ~[]byte](r *rand.Rand, b T) T {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func superblock() *layout.Superblock {
	s := &layout.Superblock{Compat: 1 << 40, ROCompat: 0, Created: time.Unix(1_700_000_000, 0).UTC()}
	copy(s.UUID[:], "0123456789abcdef")
	return s
}

func record(r *rand.Rand) *layout.Record {
	rec := &layout.Record{
		Type: layout.RecordCommit, Volume: 7, Segment: 9, Start: 3, Block: 700, Seq: 11, Synced: 10, Checkpoint: 4,
		PrevSegment: 8, PrevBlock: 55, Time: 12345, Size: 1 << 30, Last: true, NextSegment: 10,
	}
	random(r, rec.PrevMAC[:])
	random(r, rec.Incarnation[:])
	at := uint32(3)
	for _, n := range []int{1, 2, 255, 256} {
		op := layout.Op{Code: layout.OpExtent, Mode: 0x81, Offset: at, Tags: make([]layout.Tag, n)}
		at += uint32(n)
		random(r, op.KID[:])
		random(r, op.Nonce[:])
		home := layout.BlockNo(r.Uint64N(1 << 40))
		for i := range op.Tags {
			random(r, op.Tags[i][:])
			op.Homes = layout.AppendHome(op.Homes, home)
			home += layout.BlockNo(1 + r.Uint64N(2)*r.Uint64N(100))
		}
		rec.Ops = append(rec.Ops, op, layout.Op{Code: layout.OpDeleteSnapshot, Snapshot: 4}, layout.Op{Code: layout.OpZero, Kind: layout.Kind(r.IntN(2)), Start: home, Count: 1 + r.Uint64N(1<<30)})
	}
	rec.Ops = append(rec.Ops, layout.Op{Code: layout.OpSnapshot, Name: "monday", Created: 1_700_000_000})
	return rec
}

func head() *layout.Head {
	h := &layout.Head{
		Volume: 3, Clean: true, Epoch: 99, Size: 1 << 40, MinSize: 512, Created: time.Unix(1_700_000_000, 0).UTC(),
		Log: layout.Position{Segment: 5, Block: 6, End: 7, Seq: 8}, NextSegment: 12,
		Root: layout.Root{Kind: layout.Data, Height: 4, Owner: 3, Gen: 17}, NewestSnapshot: 6, Snapshots: 2, MapEpoch: 7,
		Parent: 2, ParentSnapshot: 40, Mode: 0x81, Sealed: 1 << 50, Ephemeral: true, Name: "main",
	}
	for i, p := range [][]byte{h.Store[:], h.UUID[:], h.Log.MAC[:], h.Root.Hash[:], h.SnapshotDigest[:], h.ParentHash[:], h.VolumeKey[:], h.BagDigest[:], h.SlotsDigest[:], h.Superblock[:]} {
		for j := range p {
			p[j] = byte(i*31 + j)
		}
	}
	return h
}

func TestSuperblock(t *testing.T) {
	want := superblock()
	got, err := layout.DecodeSuperblock(want.Encode())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	good := want.Encode()
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		if _, err := layout.DecodeSuperblock(b); err == nil {
			t.Fatalf("byte %d flipped: accepted", i)
		}
	}
	if _, err := layout.DecodeSuperblock(append(bytes.Clone(good), 0)); err == nil {
		t.Error("trailing byte accepted")
	}
	b := bytes.Clone(good)
	b[11] = 1
	if _, err := layout.DecodeSuperblock(b); !errors.Is(err, layout.ErrVersion) {
		t.Errorf("another version: %v", err)
	}
	later := superblock()
	later.Incompat = 1 << 3
	if _, err := layout.DecodeSuperblock(later.Encode()); !errors.Is(err, layout.ErrVersion) {
		t.Errorf("unknown incompat feature: %v", err)
	}
	later = superblock()
	later.ROCompat = 1 << 3
	if s, err := layout.DecodeSuperblock(later.Encode()); err != nil || !s.ReadOnly() {
		t.Errorf("unknown ro-compat feature: %v", err)
	}
}

func TestRecord(t *testing.T) {
	want := record(rand.New(rand.NewPCG(1, 2)))
	b := layout.AppendRecord([]byte("before"), want, sign)[len("before"):]
	if len(b)%layout.BlockSize != 0 {
		t.Fatalf("%d bytes are no whole blocks", len(b))
	}
	n, ok := layout.PeekRecord(b, 7, 9, 700)
	if !ok || want.Block+uint32(len(b)/layout.BlockSize) != want.End() {
		t.Fatalf("peek: %d %v; end %d", n, ok, want.End())
	}
	for _, wrong := range []struct {
		v   layout.VolumeID
		s   layout.SegmentNo
		blk uint32
	}{{6, 9, 700}, {7, 8, 700}, {7, 9, 701}} {
		if _, ok := layout.PeekRecord(b, wrong.v, wrong.s, wrong.blk); ok {
			t.Errorf("a record at another place counts: %+v", wrong)
		}
	}
	got, err := layout.DecodeRecord(b[:n], sign)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	for i := range n {
		c := bytes.Clone(b[:n])
		c[i] ^= 1
		if _, err := layout.DecodeRecord(c, sign); err == nil {
			t.Fatalf("byte %d flipped: accepted", i)
		}
	}
	if _, err := layout.DecodeRecord(b[:n-1], sign); err == nil {
		t.Error("a shortened record is accepted")
	}
}

// TestRecordOutOfRange are records that are authentic and wrong.
func TestRecordOutOfRange(t *testing.T) {
	for name, spoil := range map[string]func(*layout.Record){
		"extent behind the record": func(r *layout.Record) { r.Ops[0].Offset = r.Block },
		"extent before the commit": func(r *layout.Record) { r.Ops[0].Offset = r.Start - 1 },
		"no homes":                 func(r *layout.Record) { r.Ops[0].Homes = nil },
		"homes and blocks differ":  func(r *layout.Record) { r.Ops[3].Homes[0].Count++ },
		"home outside":             func(r *layout.Record) { r.Ops[0].Homes[0].Start = 1 << 60 },
		"empty run":                func(r *layout.Record) { r.Ops[0].Homes[0].Count = 0 },
		"empty range":              func(r *layout.Record) { r.Ops[2].Count = 0 },
		"range overflows":          func(r *layout.Record) { r.Ops[2].Count = 1 << 63 },
		"zero of a data kind":      func(r *layout.Record) { r.Ops[2].Kind = layout.Data },
		"deletes what is to come":  func(r *layout.Record) { r.Ops[1].Snapshot = r.Seq },
		"deletes nothing":          func(r *layout.Record) { r.Ops[1].Snapshot = 0 },
		"snapshot before the end":  func(r *layout.Record) { r.Ops = append(r.Ops, r.Ops[1]) },
		"snapshot without a name":  func(r *layout.Record) { r.Ops[len(r.Ops)-1].Name = "" },
		"snapshot with a bad name": func(r *layout.Record) { r.Ops[len(r.Ops)-1].Name = "a/b" },
		"next without last":        func(r *layout.Record) { r.Last = false },
		"last without next":        func(r *layout.Record) { r.NextSegment = 0 },
		"starts behind itself":     func(r *layout.Record) { r.Start = r.Block + 1 },
		"continue with operations": func(r *layout.Record) { r.Type = layout.RecordContinue },
		"unknown type":             func(r *layout.Record) { r.Type = 9 },
		"size in no sectors":       func(r *layout.Record) { r.Size++ },
		"size too large":           func(r *layout.Record) { r.Size = 1 << 63 },
		"a home twice":             func(r *layout.Record) { r.Ops[3].Homes[1].Start = r.Ops[3].Homes[0].Start },
	} {
		r := record(rand.New(rand.NewPCG(1, 2)))
		spoil(r)
		b := layout.AppendRecord(nil, r, sign)
		n, ok := layout.PeekRecord(b, 7, 9, 700)
		if !ok {
			t.Fatalf("%s: no record", name)
		}
		if _, err := layout.DecodeRecord(b[:n], sign); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestHead(t *testing.T) {
	want := head()
	b := want.Encode(sign)
	got, err := layout.DecodeHead(b, sign)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1
		if _, err := layout.DecodeHead(c, sign); err == nil {
			t.Fatalf("byte %d flipped: accepted", i)
		}
	}
	for name, spoil := range map[string]func(*layout.Head){
		"no name":              func(h *layout.Head) { h.Name = "" },
		"name with a slash":    func(h *layout.Head) { h.Name = "a/b" },
		"too large":            func(h *layout.Head) { h.Size = 1 << 63 },
		"smaller than its min": func(h *layout.Head) { h.MinSize = h.Size + 1 },
		"size in no sectors":   func(h *layout.Head) { h.Size++ },
		"no newest snapshot":   func(h *layout.Head) { h.NewestSnapshot = 0 },
		"epoch went back":      func(h *layout.Head) { h.MapEpoch = h.NewestSnapshot - 1 },
		"a hole with a hash":   func(h *layout.Head) { h.Root.Kind = layout.Hole },
	} {
		h := head()
		spoil(h)
		if _, err := layout.DecodeHead(h.Encode(sign), sign); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range []string{"main", "a", "9", "A.b_c-d", strings.Repeat("x", 63)} {
		if !layout.ValidName(s) {
			t.Errorf("%q refused", s)
		}
	}
	for _, s := range []string{"", ".a", "-a", "_a", "a b", "a/b", "a\x00", "ä", strings.Repeat("x", 64)} {
		if layout.ValidName(s) {
			t.Errorf("%q accepted", s)
		}
	}
}

func TestExtentRecord(t *testing.T) {
	e := layout.ExtentRecord{Mode: 0x82, Blocks: 256, Offset: 1000, Segment: 5, Partial: true}
	present := []int{0, 3, 8, 63, 64, 255}
	for _, i := range present {
		e.Present[i/8] |= 1 << (i % 8)
	}
	got, err := layout.DecodeExtentRecord(e.Append(nil))
	if err != nil || got != e {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	next := uint32(1000)
	for i := range 256 {
		at, ok := got.BlockAt(uint8(i))
		if wantOK := len(present) > 0 && present[0] == i; ok != wantOK || ok && at != next {
			t.Fatalf("block %d is at %d, %v; want %d, %v", i, at, ok, next, wantOK)
		} else if ok {
			present = present[1:]
			next++
		}
	}
	whole := layout.ExtentRecord{Mode: 0x81, Blocks: 3, Offset: 7, Segment: 1}
	if at, ok := whole.BlockAt(2); at != 9 || !ok {
		t.Errorf("block 2 is at %d, %v", at, ok)
	}
	if _, ok := whole.BlockAt(3); ok {
		t.Error("block 3 of 3 exists")
	}
}

func TestSegmentRecord(t *testing.T) {
	for _, want := range []layout.SegmentRecord{
		{Checkpoint: 5, Class: 8, Kind: layout.SegmentLog, Used: 12, First: 1, Last: 4, Live: []byte{0xff, 0x0f}},
		{Checkpoint: 5, Class: 8, Kind: layout.SegmentCompacted, Used: 9, Extents: []layout.ExtentID{1, 2}, Live: []byte{0xff, 1}, Moving: true, Punched: true},
	} {
		b := want.Encode()
		got, err := layout.DecodeSegmentRecord(b)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("decoded %+v, %v", got, err)
		}
		for i := range b {
			b[i] ^= 0x10
			if _, err := layout.DecodeSegmentRecord(b); !errors.Is(err, layout.ErrCorrupt) {
				t.Errorf("byte %d flipped: %v", i, err)
			}
			b[i] ^= 0x10
		}
		for n := range b {
			if _, err := layout.DecodeSegmentRecord(b[:n]); !errors.Is(err, layout.ErrCorrupt) {
				t.Errorf("cut to %d bytes: %v", n, err)
			}
		}
	}
}

func TestSnapshot(t *testing.T) {
	want := layout.Snapshot{Seq: 9, Name: "golden", Created: time.Unix(1_700_000_000, 0).UTC(), Size: 1 << 40, Root: head().Root}
	b := want.Encode()
	got, err := layout.DecodeSnapshot(b)
	if err != nil || *got != want {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	for n := range b {
		if _, err := layout.DecodeSnapshot(b[:n]); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
	}
	for name, spoil := range map[string]func(*layout.Snapshot){
		"no number":          func(s *layout.Snapshot) { s.Seq = 0 },
		"no name":            func(s *layout.Snapshot) { s.Name = "" },
		"size in no sectors": func(s *layout.Snapshot) { s.Size = 511 },
		"a hole with a hash": func(s *layout.Snapshot) { s.Root.Kind = layout.Hole },
	} {
		s := want
		spoil(&s)
		if _, err := layout.DecodeSnapshot(s.Encode()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzDecoders feeds every decoder: no panic, and what is accepted encodes to
// the same bytes.
func FuzzDecoders(f *testing.F) {
	f.Add(superblock().Encode())
	f.Add(head().Encode(sign))
	f.Add(layout.AppendRecord(nil, record(rand.New(rand.NewPCG(3, 4))), sign))
	e := layout.ExtentRecord{Mode: 0x82, Blocks: 256, Offset: 1000, Segment: 5, Partial: true}
	f.Add(e.Append(nil))
	f.Add((&layout.SegmentRecord{Checkpoint: 5, Class: 8, Kind: layout.SegmentLog, Used: 12, First: 1, Last: 4, Live: []byte{0xff, 0x0f}}).Encode())
	f.Add((&layout.SegmentRecord{Checkpoint: 5, Class: 8, Kind: layout.SegmentCompacted, Used: 9, Extents: []layout.ExtentID{1, 2}, Live: []byte{0xff, 1}}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := layout.DecodeSuperblock(b); err == nil && !bytes.Equal(s.Encode(), b) {
			t.Error("superblock encodes differently")
		}
		// The signer accepts: what is behind the MAC is the attacker's.
		accept := func(parts ...[]byte) (mac [32]byte) {
			if len(b) >= 32 {
				copy(mac[:], b[len(b)-32:])
			}
			return mac
		}
		if h, err := layout.DecodeHead(b, accept); err == nil && !bytes.Equal(h.Encode(accept), b) {
			t.Error("head encodes differently")
		}
		if r, err := layout.DecodeRecord(b, accept); err == nil {
			if again := layout.AppendRecord(nil, r, accept); !bytes.Equal(again[:len(b)], b) {
				t.Error("record encodes differently")
			}
		}
		if e, err := layout.DecodeExtentRecord(b); err == nil && !bytes.Equal(e.Append(nil), b) {
			t.Error("extent record encodes differently")
		}
		if s, err := layout.DecodeSegmentRecord(b); err == nil && !bytes.Equal(s.Encode(), b) {
			t.Error("segment record encodes differently")
		}
	})
}
