package trace

import (
	"fmt"
	"io"
	"path"
)

// Dump writes the operations as text, one a line, with the paths they had at
// the time: for people, and for golden files of an order of syncs and renames.
// A run of writes to one file is one line.
func (t *Trace) Dump(w io.Writer) error {
	d := dumper{}
	if t.Base != "" {
		base, _, err := ReadTree(t.Base)
		if err != nil {
			return err
		}
		base.noteNames(d)
	}
	for i := 0; i < len(t.Ops); {
		end := i + 1
		for end < len(t.Ops) && joins(&t.Ops[i], &t.Ops[end]) {
			end++
		}
		if _, err := fmt.Fprintln(w, d.line(t.Ops[i:end])); err != nil {
			return err
		}
		i = end
	}
	return nil
}

func joins(a, b *Op) bool {
	return a.Kind == Write && b.Kind == Write && a.File == b.File && a.Err == 0 && b.Err == 0
}

// dumper knows the name that each node had last.
type dumper map[ID]entry

func (d dumper) path(id ID) string {
	if id == Root {
		return "."
	}
	e, ok := d[id]
	if !ok {
		return "?"
	}
	return path.Join(d.path(e.dir), e.name)
}

func (d dumper) line(run []Op) string {
	op := &run[0]
	s := op.Kind.String() + " " + d.detail(run)
	if op.Err != 0 {
		return fmt.Sprintf("%s: %v", s, op.Err)
	}
	noteName(d, op)
	return s
}

func (d dumper) detail(run []Op) string {
	op := &run[0]
	switch op.Kind {
	case Mark:
		return fmt.Sprintf("%q", op.Text)
	case Rename:
		return path.Join(d.path(op.Dir), op.Name) + " " + path.Join(d.path(op.Dir2), op.Name2)
	case Create, Link, Unlink:
		return path.Join(d.path(op.Dir), op.Name)
	case Write:
		n := int64(0)
		for _, o := range run {
			n += o.Len
		}
		return fmt.Sprintf("%s %d bytes in %d", d.path(op.File), n, len(run))
	case Allocate, Punch:
		return fmt.Sprintf("%s %d+%d", d.path(op.File), op.Off, op.Len)
	case Truncate:
		return fmt.Sprintf("%s %d", d.path(op.File), op.Off)
	}
	return d.path(op.File)
}
