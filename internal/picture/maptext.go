package picture

import (
	"bufio"
	"fmt"
	"io"
)

const (
	textRows = 16
	textAxis = 12 // "1023.9 GiB │" without the bar
	textName = 24 // of the legend's names
)

// blocks are a cell's eighths of data.
var blocks = []rune("▁▂▃▄▅▆▇█")

// Text draws the map for a terminal width columns wide, in up to 16 lines of block
// elements, each as high as its cell is full of data. With colour they have that of
// the class that fills most of it. Zeros are dots where there is no data.
func (m *Map) Text(w io.Writer, width int, colour bool) error {
	columns := 8
	for columns*2 <= min(width-textAxis-1, maxColumns) {
		columns *= 2
	}
	g := m.grid(columns, textRows)
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "%s\n%s\n", printable(m.Title), g.summary(m.Size))
	for row := range g.rows() {
		g.rowText(out, row, colour)
	}
	if m.Size > 0 {
		g.legendText(out, m.Size, colour)
	}
	return out.Flush()
}

func (g *grid) rowText(out *bufio.Writer, row int, colour bool) {
	fmt.Fprintf(out, "%*s│", textAxis-1, offsetText(int64(row*g.columns)*g.cellSize)+" ")
	brush := brush{out: out, on: colour}
	for i := row * g.columns; i < min((row+1)*g.columns, len(g.cells)); i++ {
		brush.cell(g, g.cells[i].look())
	}
	brush.use(0)
	out.WriteString("│\n")
}

// brush changes the terminal's colour only where it changes.
type brush struct {
	out *bufio.Writer
	on  bool
	now uint8 // 0 is the terminal's own
}

func (b *brush) use(c uint8) {
	switch {
	case !b.on || c == b.now:
		return
	case c == 0:
		b.out.WriteString("\x1b[0m")
	default:
		fmt.Fprintf(b.out, "\x1b[38;5;%dm", c)
	}
	b.now = c
}

func (b *brush) cell(g *grid, l look) {
	switch {
	case l.eighths == 0:
		b.out.WriteString(" ")
	case l.class == notData:
		b.use(zeros.terminal)
		b.out.WriteString("·")
	default:
		b.use(g.classes[l.class].colour.terminal)
		b.out.WriteRune(blocks[l.eighths-1])
	}
}

func (g *grid) legendText(out *bufio.Writer, size int64, colour bool) {
	out.WriteString("\n")
	lines := g.lines()
	for i := range lines {
		t := &lines[i]
		brush := brush{out: out, on: colour}
		switch {
		case i < len(g.classes):
			brush.use(t.colour.terminal)
			out.WriteString("█")
		case t.name == "zeros":
			brush.use(t.colour.terminal)
			out.WriteString("·")
		default:
			out.WriteString(" ")
		}
		brush.use(0)
		fmt.Fprintf(out, " %s %10s %8s\n", pad(clip(t.label(), textName), textName), sizeText(t.bytes), percentText(t.bytes, size))
	}
}
