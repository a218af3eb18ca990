package picture

import (
	"cmp"
	"iter"
	"slices"
)

// Map is what lies where in Size bytes.
type Map struct {
	Title string
	Size  int64
	// Runs ascend. What no run covers is a hole; what lies outside the map, or
	// begins before the end of the run before it, is left out to that extent.
	Runs []MapRun
}

// MapRun is a range that is of one kind.
type MapRun struct {
	Start, Length int64
	Class         string // what it is coloured by: a key, the snapshot since which it is unchanged; "" is a hole
	Zero          bool   // reads as zeros and takes no room, whatever its Class
}

// mapClasses is how many classes have a colour of their own. Of more, the smallest
// share one.
const mapClasses = len(palette)

// minCell is what a cell has at least: nothing smaller is stored.
const minCell = 4096

// slot is the place of a run's class in legend.classes.
type slot int

const notData slot = -1

// legend is what a map has of each class.
type legend struct {
	classes      []classTotal // largest first, "others" last
	slots        map[string]slot
	zeros, holes int64
}

type classTotal struct {
	name   string
	bytes  int64
	merged int // how many classes share this place; 0 for one with its own
	colour colour
}

// cell is one piece of a map. Its class is the one that fills most of its data.
type cell struct {
	size, data, zeros int64
	class             slot
}

// look is what a cell shows: data of a class, zeros, or if eighths is 0 a hole.
type look struct {
	class   slot // notData for zeros and holes
	eighths int  // how full it is, 1 at least
}

func (c *cell) look() look {
	n := cmp.Or(c.data, c.zeros)
	if n == 0 {
		return look{notData, 0}
	}
	return look{c.class, max(1, int(float64(n)/float64(c.size)*8+0.5))}
}

// grid is a map cut into cells of one size, a power of two so that offsets are
// round; the last one may be smaller.
type grid struct {
	*legend
	columns  int
	cellSize int64
	cells    []cell
}

func (g *grid) rows() int { return (len(g.cells) + g.columns - 1) / g.columns }

// clipped yields the runs that Runs promises, without holes.
func (m *Map) clipped() iter.Seq[MapRun] {
	return func(yield func(MapRun) bool) {
		var at int64
		for _, r := range m.Runs {
			if r.Length <= 0 || r.Start >= m.Size {
				continue
			}
			end := m.Size
			if r.Start < 0 || r.Length < m.Size-r.Start {
				end = min(r.Start+r.Length, m.Size)
			}
			start := max(r.Start, at)
			if start >= end {
				continue
			}
			at = end
			hole := r.Class == "" && !r.Zero
			if !hole && !yield(MapRun{start, end - start, r.Class, r.Zero}) {
				return
			}
		}
	}
}

// legend adds up the classes and gives those that are large a colour.
func (m *Map) legend() *legend {
	l := &legend{slots: map[string]slot{}, holes: max(0, m.Size)}
	at := notData // of the class before: most runs have the one of a neighbour
	for r := range m.clipped() {
		l.holes -= r.Length
		if r.Zero {
			l.zeros += r.Length
			continue
		}
		if at == notData || l.classes[at].name != r.Class {
			at = l.slotOf(r.Class)
		}
		l.classes[at].bytes += r.Length
	}
	slices.SortFunc(l.classes, func(a, b classTotal) int {
		return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.name, b.name))
	})
	l.merge()
	return l
}

func (l *legend) slotOf(class string) slot {
	at, ok := l.slots[class]
	if !ok {
		at = slot(len(l.classes))
		l.slots[class] = at
		l.classes = append(l.classes, classTotal{name: class})
	}
	return at
}

// merge makes one of the smallest classes when there are too many, and renumbers.
func (l *legend) merge() {
	own := len(l.classes)
	if own > mapClasses {
		own = mapClasses - 1
	}
	c := newColours()
	rest := classTotal{name: "others", colour: others}
	for i := range l.classes {
		t := &l.classes[i]
		l.slots[t.name] = slot(min(i, own))
		if i < own {
			t.colour = c.of(t.name)
			continue
		}
		rest.bytes += t.bytes
		rest.merged++
	}
	l.classes = l.classes[:own]
	if rest.merged > 0 {
		l.classes = append(l.classes, rest)
	}
}

// grid cuts the map into lines of columns cells, at most rows of them.
func (m *Map) grid(columns, rows int) *grid {
	g := &grid{legend: m.legend(), columns: columns, cellSize: minCell}
	if m.Size <= 0 {
		return g
	}
	for (m.Size-1)/g.cellSize >= int64(columns*rows) {
		g.cellSize *= 2
	}
	g.cells = make([]cell, (m.Size-1)/g.cellSize+1)
	for i := range g.cells {
		start := int64(i) * g.cellSize
		g.cells[i] = cell{size: min(g.cellSize, m.Size-start), class: notData}
	}
	g.fill(m)
	return g
}

// fill spreads the runs over the cells.
func (g *grid) fill(m *Map) {
	inClass := make([][mapClasses]int64, len(g.cells)) // bytes of each slot
	last, at := "", notData
	for r := range m.clipped() {
		if at == notData || last != r.Class {
			last, at = r.Class, g.slots[r.Class]
		}
		for r.Length > 0 {
			i := r.Start / g.cellSize
			n := min(r.Length, g.cellSize-r.Start%g.cellSize)
			if r.Zero {
				g.cells[i].zeros += n
			} else {
				g.cells[i].data += n
				inClass[i][at] += n
			}
			r.Start, r.Length = r.Start+n, r.Length-n
		}
	}
	for i := range g.cells {
		if g.cells[i].data > 0 {
			g.cells[i].class = largest(inClass[i][:])
		}
	}
}

// largest is the place of the largest number, the first of equal ones.
func largest(n []int64) slot {
	at := 0
	for i := range n {
		if n[i] > n[at] {
			at = i
		}
	}
	return slot(at)
}

// lines are the legend's, in their order; those of zeros and holes only if there
// are any.
func (l *legend) lines() []classTotal {
	lines := slices.Clone(l.classes)
	if l.zeros > 0 {
		lines = append(lines, classTotal{name: "zeros", bytes: l.zeros, colour: zeros})
	}
	if l.holes > 0 {
		lines = append(lines, classTotal{name: "holes", bytes: l.holes, colour: holes})
	}
	return lines
}

func (t *classTotal) label() string {
	if t.merged > 0 {
		return counted(t.merged, "other")
	}
	return t.name
}
