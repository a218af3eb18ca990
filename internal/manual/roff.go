package manual

import (
	"bytes"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/russross/blackfriday/v2"
)

// renderer is go-md2man's, but for what does not fit on a terminal: a table is a list of
// terms, and a link is its text.
type renderer struct {
	blackfriday.Renderer
}

// pageWidth is how long lines of the source of a page may be, in bytes, where what is not
// ASCII counts as its name, \[u2026].
const pageWidth = 78

// render makes the body of a page of Markdown.
func render(markdown string) []byte {
	markdown = strings.ReplaceAll(markdown, "…", "...") // not every terminal has it
	base := md2man.NewRoffRenderer()
	raw := blackfriday.Run([]byte(markdown), blackfriday.WithRenderer(renderer{base}), blackfriday.WithExtensions(base.GetExtensions()))
	return wrap(raw)
}

func (renderer) RenderHeader(w io.Writer, _ *blackfriday.Node) { io.WriteString(w, ".nh\n") }

func (r renderer) RenderNode(w io.Writer, node *blackfriday.Node, entering bool) blackfriday.WalkStatus {
	switch node.Type {
	case blackfriday.Link:
		return blackfriday.GoToNext // its text is rendered
	case blackfriday.Code:
		io.WriteString(w, `\fB`+literal(node.Literal)+`\fR`)
		return blackfriday.GoToNext
	case blackfriday.CodeBlock:
		io.WriteString(w, "\n.sp\n.nf\n"+atLineStarts(literal(bytes.TrimRight(node.Literal, "\n")))+"\n.fi\n")
		return blackfriday.GoToNext
	case blackfriday.Table, blackfriday.TableBody:
		return blackfriday.GoToNext
	case blackfriday.TableHead:
		return blackfriday.SkipChildren
	case blackfriday.TableRow:
		if entering {
			io.WriteString(w, "\n.TP\n")
		} else {
			io.WriteString(w, "\n")
		}
		return blackfriday.GoToNext
	case blackfriday.TableCell:
		if !entering && node.Next != nil {
			io.WriteString(w, "\n")
		}
		return blackfriday.GoToNext
	}
	return r.Renderer.RenderNode(w, node, entering)
}

// literal is text that is to be seen, and copied, as it is: a plain - may become a
// typographic hyphen.
func literal(text []byte) string {
	return strings.NewReplacer(`\`, `\\`, "-", `\-`, "'", `\(aq`, "`", "\\`", "^", `\(ha`, "~", `\(ti`).Replace(string(text))
}

// atLineStarts keeps lines of text from being taken for requests.
func atLineStarts(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// wrap fills the lines of text to pageWidth, and leaves out empty lines and paragraphs
// that begin where something else does anyway.
func wrap(roff []byte) []byte {
	w := wrapper{}
	for line := range strings.Lines(string(roff)) {
		w.add(strings.TrimRight(line, " \n"))
	}
	w.flush()
	return w.out.Bytes()
}

type wrapper struct {
	out   bytes.Buffer
	words []string // of text that is not written yet
	as    bool     // text stands as it is
	last  string   // the request before
}

func (w *wrapper) add(line string) {
	switch {
	case w.as && line != ".fi":
		w.out.WriteString(line + "\n")
	case strings.HasPrefix(line, "."):
		w.flush()
		request, _, _ := strings.Cut(line, " ")
		if w.opens() && (request == ".PP" || request == ".sp") {
			return
		}
		w.as = request == ".nf"
		w.out.WriteString(line + "\n")
		w.last = request
		if request == ".TP" {
			w.last = ".TP"
		}
	case w.last == ".TP" && line != "": // the term is a line of its own
		w.out.WriteString(line + "\n")
		w.last = ""
	default:
		w.words = append(w.words, strings.Fields(line)...)
	}
}

// opens tells whether the last thing written was a request behind which a paragraph
// begins by itself.
func (w *wrapper) opens() bool { return w.last == ".SH" || w.last == ".SS" || w.last == ".PP" }

func (w *wrapper) flush() {
	length := 0
	for _, word := range w.words {
		switch {
		case length > 0 && length+1+width(word) > pageWidth:
			w.out.WriteString("\n")
			length = 0
		case length > 0:
			w.out.WriteString(" ")
			length++
		}
		if length == 0 {
			word = atLineStarts(word)
		}
		w.out.WriteString(word)
		length += width(word)
	}
	if length > 0 {
		w.out.WriteString("\n")
		w.last = ""
	}
	w.words = nil
}

func width(word string) (n int) {
	for _, r := range word {
		if n++; r >= utf8.RuneSelf {
			n += len(`[u2026]`)
		}
	}
	return n
}
