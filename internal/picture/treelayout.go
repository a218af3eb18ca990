package picture

// Measures of a tree's drawing.
const (
	margin     = 24
	boxWidth   = 196
	boxHeight  = 50
	laneGap    = 14
	labelRise  = 56 // of the three lines above a snapshot's dot
	dotRadius  = 6
	dotStep    = 18  // between dots of which one has no label
	labelGap   = 14  // between labels
	labelMin   = 100 // width of a time, and of "frees 1023.9 GiB"
	labelMax   = 166 // longer names are clipped
	cloneShift = 26  // from a snapshot to the boxes of its clones
	boxStem    = 14  // in a box, where clones of no snapshot hang
)

// labelAll is how many snapshots of a volume are all labelled. Of more, the ends,
// those with clones, and as many as there is room for.
const labelAll = 12

// lane is where a volume is drawn: its box begins at x, its line is at y.
type lane struct {
	*node
	x, y int
	dots []dot // one for each snapshot
	end  int   // where its line ends, in the present
}

type dot struct {
	*TreeSnapshot
	x     int
	label string // its name, clipped; "" without a label
}

// stem goes down from a snapshot to the lane of a clone.
type stem struct{ x, fromY, toX, toY int }

// treeLayout is a tree's lanes from top to bottom. The clones of a volume's newest
// snapshot come first, and begin right of it: so the stem of an older one, which
// passes them on their left, crosses nothing.
type treeLayout struct {
	lanes         []lane
	stems         []stem
	width, height int
}

func layOut(roots []*node) *treeLayout {
	l := &treeLayout{}
	for _, n := range roots {
		l.place(n, margin)
	}
	return l
}

// place adds n at x, and below it all that was cloned from it.
func (l *treeLayout) place(n *node, x int) (y int) {
	rise := boxHeight / 2
	if len(n.snapshots) > 0 {
		rise = labelRise
	}
	a := lane{node: n, x: x, y: l.height + rise}
	a.dots, a.end = dots(n, x+boxWidth)
	right := a.end
	for _, d := range a.dots {
		if d.label != "" {
			right = max(right, d.x-dotRadius+labelWidth(d.label))
		}
	}
	l.width = max(l.width, right+margin)
	l.height = a.y + boxHeight/2 + laneGap
	l.lanes = append(l.lanes, a)
	for i := len(a.dots) - 1; i >= 0; i-- {
		l.hang(n.snapshots[i].clones, a.dots[i].x, a.y+dotRadius, a.dots[i].x+cloneShift)
	}
	l.hang(n.clones, x+boxStem, a.y+boxHeight/2, x+boxStem+cloneShift)
	return a.y
}

// hang places clones, which start at a point, at toX.
func (l *treeLayout) hang(clones []*node, x, y, toX int) {
	for _, c := range clones {
		l.stems = append(l.stems, stem{x, y, toX, l.place(c, toX)})
	}
}

func labelWidth(label string) int { return max(labelMin, textWidth("name", label)) }

// dots places a volume's snapshots on a line that begins at x.
func dots(n *node, x int) (out []dot, end int) {
	free := x + dotStep + dotRadius // where the next label may begin
	for i, s := range n.snapshots {
		x += dotStep
		must := len(n.snapshots) <= labelAll || i == 0 || i == len(n.snapshots)-1 || len(s.clones) > 0
		d := dot{TreeSnapshot: s.TreeSnapshot}
		if must || x >= free {
			x = max(x, free)
			d.label = fitting("name", s.Name, labelMax)
			free = x + labelWidth(d.label) + labelGap
		}
		d.x = x
		out = append(out, d)
	}
	return out, x + 2*dotStep
}
