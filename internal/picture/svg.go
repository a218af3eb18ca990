package picture

import (
	"fmt"
	"io"
	"strings"
)

// drawing is the body of an SVG document. All measures are in px.
type drawing struct{ strings.Builder }

// The faces have one width, so that the room a text takes is known where it is
// placed: charWidth(class) for each column.
const style = `
text { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace; fill: #111827; }
.title { font-size: 17px; font-weight: bold; }
.name { font-size: 12px; }
.volume { font-size: 12px; font-weight: bold; }
.small { font-size: 10px; fill: #4b5563; }
.end { text-anchor: end; }
.hidden { fill: #6b7280; font-style: italic; }
`

var fontSizes = map[string]float64{"title": 17, "name": 12, "volume": 12, "small": 10}

// charWidth is the width of a column in a class of style; the faces named there
// have up to 0.602 of their size.
func charWidth(class string) float64 { return 0.61 * fontSizes[strings.Fields(class)[0]] }

func textWidth(class, s string) int { return int(float64(cells(s))*charWidth(class)) + 1 }

// fitting is s, shortened to a width.
func fitting(class, s string, width int) string {
	return clip(s, max(3, int(float64(width)/charWidth(class))))
}

var xmlEscape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;")

// escape makes any string fit for an attribute or a text.
func escape(s string) string { return xmlEscape.Replace(printable(s)) }

// add writes markup; strings among args are escaped by the caller.
func (d *drawing) add(format string, args ...any) { fmt.Fprintf(d, format, args...) }

func (d *drawing) text(x, y int, class, s string) {
	d.add("<text x=\"%d\" y=\"%d\" class=\"%s\">%s</text>\n", x, y, class, escape(s))
}

func (d *drawing) rect(x, y, width, height int, fill colour) {
	d.add("<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"/>\n", x, y, width, height, fill)
}

// write makes a document of the drawing.
func (d *drawing) write(w io.Writer, title string, width, height int) error {
	_, err := fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img">
<title>%s</title>
<style>%s</style>
<rect width="100%%" height="100%%" fill="#ffffff"/>
%s</svg>
`, width, height, width, height, escape(title), style, d.String())
	return err
}

// flow places things of different widths in lines, like words.
type flow struct {
	left, right int // the bounds
	x, y, line  int // where the next begins, and the height of a line
}

// next is the place of something width wide.
func (f *flow) next(width int) (x, y int) {
	if f.x > f.left && f.x+width > f.right {
		f.x, f.y = f.left, f.y+f.line
	}
	x = f.x
	f.x += width
	return x, f.y
}
