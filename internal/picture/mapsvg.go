package picture

import (
	"fmt"
	"io"
)

// Measures of a map's drawing.
const (
	axisWidth    = 92 // room for "1023.9 GiB" left of the grid
	mapMinWidth  = 680
	legendColumn = 330
	legendNumber = 140 // of it, for size and percentage
	maxColumns   = 512
)

// SVG draws the map as a grid with this many columns (0 is 128; 8 to 512) and up to
// half as many rows. A cell has the colour of the class that fills most of its data,
// lighter the less of it is data; zeros show where there is no data.
func (m *Map) SVG(w io.Writer, columns int) error {
	if columns == 0 {
		columns = 128
	}
	columns = min(max(columns, 8), maxColumns)
	g := m.grid(columns, max(columns/2, 8))
	across := min(columns, max(len(g.cells), 1))
	side := min(max(1024/across, 4), 24) // of a cell
	width := max(axisWidth+across*side+margin, mapMinWidth)
	var d drawing
	d.text(margin, 38, "title", fitting("title", m.Title, width-2*margin))
	d.text(margin, 57, "name", g.summary(m.Size))
	y := 80
	if len(g.cells) > 0 {
		y = g.draw(&d, y, side)
	}
	y = g.drawLegend(&d, y+24, width, m.Size)
	return d.write(w, m.Title, width, y+margin)
}

func (g *grid) summary(size int64) string {
	if size <= 0 {
		return "empty: its size is 0"
	}
	var data int64
	for _, t := range g.classes {
		data += t.bytes
	}
	return fmt.Sprintf("%s, %s data · each cell is %s", sizeText(size), sizeText(data), sizeText(g.cellSize))
}

// draw draws axes and cells, and returns where they end.
func (g *grid) draw(d *drawing, y, side int) (bottom int) {
	g.drawColumnAxis(d, y+10, side)
	y += 20
	every := 1
	for every*side < 24 {
		every *= 2
	}
	for row := range g.rows() {
		if top := y + row*side; row%every == 0 {
			d.text(axisWidth-10, top+4, "small end", offsetText(int64(row*g.columns)*g.cellSize))
			d.add("<path d=\"M%d,%dh6\" stroke=\"#8391a5\"/>\n", axisWidth-7, top)
		}
		g.drawRow(d, row, y+row*side, side)
	}
	g.drawLines(d, y, side)
	return y + g.rows()*side
}

// drawColumnAxis marks offsets within a row.
func (g *grid) drawColumnAxis(d *drawing, y, side int) {
	every := max(g.columns/8, 1)
	for every*side < 90 {
		every *= 2
	}
	for c := 0; c < min(g.columns, len(g.cells)); c += every {
		x := axisWidth + c*side
		d.text(x+4, y, "small", "+"+offsetText(int64(c)*g.cellSize))
		d.add("<path d=\"M%d,%dv-9\" stroke=\"#8391a5\"/>\n", x, y+9)
	}
}

// drawRow draws neighbours that look the same as one rectangle.
func (g *grid) drawRow(d *drawing, row, y, side int) {
	first, end := row*g.columns, min((row+1)*g.columns, len(g.cells))
	for i := first; i < end; {
		shown, next := g.cells[i].look(), i+1
		for next < end && g.cells[next].look() == shown {
			next++
		}
		from, to := int64(i)*g.cellSize, int64(next-1)*g.cellSize+g.cells[next-1].size
		d.add("<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"><title>%s to %s: %s</title></rect>\n",
			axisWidth+(i-first)*side, y, (next-i)*side, side, g.colourOf(shown), offsetText(from), offsetText(to), escape(g.describe(shown)))
		i = next
	}
}

func (g *grid) describe(l look) string {
	switch {
	case l.eighths == 0:
		return "hole"
	case l.class == notData:
		return fmt.Sprintf("zeros, %d/8 full", l.eighths)
	}
	return fmt.Sprintf("%s, %d/8 full", g.classes[l.class].label(), l.eighths)
}

func (g *grid) colourOf(l look) colour {
	switch {
	case l.eighths == 0:
		return holes
	case l.class == notData:
		return tint(zeros, l.eighths)
	}
	return tint(g.classes[l.class].colour, l.eighths)
}

// tint is a colour for so many eighths.
func tint(c colour, eighths int) colour { return c.toward(white, 0.095*float64(8-eighths)) }

// drawLines parts the cells.
func (g *grid) drawLines(d *drawing, y, side int) {
	rows, columns := g.rows(), min(g.columns, len(g.cells))
	d.add("<path d=\"")
	for c := 1; c < columns; c++ {
		d.add("M%d,%dv%d", axisWidth+c*side, y, rows*side)
	}
	for r := 1; r < rows; r++ {
		d.add("M%d,%dh%d", axisWidth, y+r*side, columns*side)
	}
	d.add("\" stroke=\"#ffffff\" stroke-width=\"1\" fill=\"none\"/>\n")
}

// drawLegend draws the classes with their sizes, in columns, and what lighter
// cells are. It returns where they end.
func (g *grid) drawLegend(d *drawing, y, width int, size int64) (bottom int) {
	f := &flow{left: margin, right: width - margin, x: margin, y: y + 12, line: 20}
	lines := g.lines()
	for i := range lines {
		t := &lines[i]
		x, y := f.next(legendColumn)
		d.rect(x, y-10, 12, 12, t.colour)
		d.text(x+20, y, "name", fitting("name", t.label(), legendColumn-20-legendNumber-30))
		d.text(x+legendColumn-30-64, y, "name end", sizeText(t.bytes))
		d.text(x+legendColumn-30, y, "name end", percentText(t.bytes, size))
	}
	if len(g.classes) == 0 {
		return f.y
	}
	y = f.y + 26
	for i := 1; i <= 8; i++ {
		d.rect(margin+(i-1)*13, y-10, 12, 12, tint(g.classes[0].colour, i))
	}
	d.text(margin+8*13+8, y, "small", "lighter: partly filled")
	return y
}
