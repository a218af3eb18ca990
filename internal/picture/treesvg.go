package picture

import (
	"fmt"
	"io"
	"strings"
)

const (
	treeMinWidth   = 800
	legendWidth    = 1200 // of a tree's legend, however wide the tree is
	treeLegendKeys = 40   // how many keys it names
)

// SVG draws each volume as a lane: a box with its name, sizes and key, and a line
// in the key's colour with a dot for each snapshot, the oldest next to the box.
// A clone's lane hangs below the snapshot it starts from.
func (t *Tree) SVG(w io.Writer) error {
	l := layOut(t.forest())
	keys := t.keyColours()
	width := max(l.width, treeMinWidth)
	var d drawing
	top := t.heading(&d, keys, width)
	d.add("<g transform=\"translate(0,%d)\">\n", top)
	for _, s := range l.stems {
		d.add("<path d=\"M%d,%dV%dq0,8 8,8H%d\" fill=\"none\" stroke=\"#9aa6b6\" stroke-width=\"2\"/>\n", s.x, s.fromY, s.toY-8, s.toX)
	}
	for _, a := range l.lanes {
		a.draw(&d, keys.key(a.Key))
	}
	d.add("</g>\n")
	return d.write(w, t.Store, width, top+l.height+margin-laneGap)
}

// keyColours has the volumes' keys, in their order.
func (t *Tree) keyColours() *colours {
	c := newColours()
	for _, v := range t.Volumes {
		c.key(v.Key)
	}
	return c
}

// key is the colour of a key; unknown ones share one.
func (c *colours) key(id string) colour {
	if id == "" {
		return noKey
	}
	return c.of(id)
}

// heading draws title and legend, and returns where what is below them begins.
func (t *Tree) heading(d *drawing, keys *colours, width int) (bottom int) {
	volumes, snapshots := t.count()
	d.text(margin, 38, "title", fitting("title", t.Store, width-2*margin))
	d.text(margin, 57, "name", fmt.Sprintf("%s, %s used · %s · %s", sizeText(t.Size), sizeText(t.Used),
		counted(volumes, "volume"), counted(snapshots, "snapshot")))
	f := &flow{left: margin, right: min(width, legendWidth) - margin, x: margin, y: 84, line: 20}
	signs(d, f)
	f.x, f.y = f.left, f.y+f.line
	t.keyLegend(d, f, keys)
	rule := f.y + 14
	d.add("<path d=\"M%d,%dH%d\" stroke=\"#d5dae1\"/>\n", margin, rule, width-margin)
	return rule + 20
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// signs explains the signs.
func signs(d *drawing, f *flow) {
	for _, s := range []struct {
		text string
		draw func(x, y int)
	}{
		{"snapshot, old to new", func(x, y int) { drawDot(d, x+dotRadius, y, noKey, false, "") }},
		{"hidden: deleted, kept for its clones", func(x, y int) { drawDot(d, x+dotRadius, y, noKey, true, "") }},
		{"the volume now", func(x, y int) { drawHead(d, x+11, y, noKey) }},
	} {
		x, y := f.next(20 + textWidth("small", s.text) + 22)
		s.draw(x, y-4)
		d.text(x+20, y, "small", s.text)
	}
}

func (t *Tree) keyLegend(d *drawing, f *flow, keys *colours) {
	seen := map[string]bool{"": true}
	for _, v := range t.Volumes {
		if seen[v.Key] {
			continue
		}
		seen[v.Key] = true
		if n := len(keys.byName) - treeLegendKeys; n > 0 && len(seen)-1 > treeLegendKeys {
			more := "and " + counted(n, "key") + " more"
			x, y := f.next(textWidth("small", more))
			d.text(x, y, "small", more)
			return
		}
		label := "key " + clip(v.Key, 20)
		x, y := f.next(20 + textWidth("small", label) + 22)
		d.rect(x, y-10, 12, 12, keys.key(v.Key))
		d.text(x+20, y, "small", label)
	}
}

// draw draws one lane.
func (a *lane) draw(d *drawing, c colour) {
	a.drawLine(d, c)
	a.drawBox(d, c)
	for _, s := range a.dots {
		tip := fmt.Sprintf("%s@%s: %s", a.Name, s.Name, strings.Join(s.facts(-1), ", "))
		drawDot(d, s.x, a.y, c, s.Hidden, tip)
		if s.label == "" {
			continue
		}
		x := s.x - dotRadius
		y := a.y - 14
		d.text(x, y, "small", "frees "+sizeText(s.Freed))
		if at := s.created(); at != "" {
			y -= 13
			d.text(x, y, "small", at)
		}
		d.text(x, y-13, named("name", s.Hidden), s.label)
	}
}

// drawLine draws the line up to the present; that of a deleted volume ends at its
// last snapshot.
func (a *lane) drawLine(d *drawing, c colour) {
	end := a.end - 8
	switch {
	case !a.Hidden:
		drawHead(d, a.end, a.y, c)
	case len(a.dots) == 0:
		return
	default:
		end = a.dots[len(a.dots)-1].x
	}
	d.add("<path d=\"M%d,%dH%d\" stroke=\"%s\" stroke-width=\"3\"/>\n", a.x+boxWidth, a.y, end, c)
}

// named is a class for the name of something that may be hidden.
func named(class string, hidden bool) string {
	if hidden {
		return class + " hidden"
	}
	return class
}

func (a *lane) drawBox(d *drawing, c colour) {
	y := a.y - boxHeight/2
	dash := ""
	if a.Hidden {
		dash = ` stroke-dasharray="4 3"`
	}
	d.add("<g><title>%s</title>\n", escape(a.Name+": "+strings.Join(a.facts(), ", ")))
	d.add("<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"5\" fill=\"%s\" stroke=\"%s\" stroke-width=\"1.2\"%s/>\n",
		a.x, y, boxWidth, boxHeight, c.toward(white, 0.93), c, dash)
	d.add("<path d=\"M%d,%dh-2a5,5 0 0 0 -5,5v%da5,5 0 0 0 5,5h2z\" fill=\"%s\"/>\n", a.x+7, y, boxHeight-10, c)
	room := boxWidth - 22
	d.text(a.x+16, y+17, named("volume", a.Hidden), fitting("volume", a.Name, room))
	d.text(a.x+16, y+31, "small", sizeText(a.Size)+" · own "+sizeText(a.Own))
	d.text(a.x+16, y+43, "small", a.thirdLine(room))
	d.add("</g>\n")
}

// thirdLine of a box: its key, and where it is from if no stem says it, which is
// clipped to the width.
func (a *lane) thirdLine(width int) string {
	var parts []string
	if a.Key != "" {
		parts = append(parts, "key "+clip(a.Key, 12))
	}
	if a.Hidden {
		parts = append(parts, "hidden")
	}
	if from := a.origin(); from != "" {
		used := strings.Join(append(parts, ""), " · ")
		parts = append(parts, fitting("small", from, width-textWidth("small", used)))
	}
	return strings.Join(parts, " · ")
}

// drawDot draws a snapshot; tip is shown below the pointer.
func drawDot(d *drawing, x, y int, c colour, hidden bool, tip string) {
	paint := fmt.Sprintf(`fill="%s" stroke="#ffffff" stroke-width="1.5"`, c)
	if hidden {
		paint = fmt.Sprintf(`fill="#ffffff" stroke="%s" stroke-width="1.5" stroke-dasharray="2.5 1.5"`, c)
	}
	if tip != "" {
		tip = "<title>" + escape(tip) + "</title>"
	}
	d.add("<circle cx=\"%d\" cy=\"%d\" r=\"%d\" %s>%s</circle>\n", x, y, dotRadius, paint, tip)
}

// drawHead draws the arrow whose tip is a volume's present.
func drawHead(d *drawing, x, y int, c colour) {
	d.add("<path d=\"M%d,%dl-11,-6v12z\" fill=\"%s\"/>\n", x, y, c)
}
