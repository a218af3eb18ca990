// Benchchart reads what `scripts/bench --save` writes as JSON and draws it: for
// each job a bar for each server, as long as its rate.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// results is the part of the bench's JSON that is drawn.
type results struct {
	Date, Commit, CPU, Size string
	Seconds                 float64
	Titles                  map[string]string // of the targets
	Jobs                    []job
}

type job struct {
	Job, Place, Unit string
	Goals            map[string]float64 // fsxnbd's rate, as a multiple of a target's
	Targets          map[string]rates
}

type rates struct {
	IOPS           *float64 `json:"iops"`
	BytesPerSecond float64  `json:"bytes_per_second"`
}

// value is the rate in the job's unit.
func (j job) value(r rates) float64 {
	if j.Unit != "MiB/s" && r.IOPS != nil {
		return *r.IOPS
	}
	return r.BytesPerSecond / (1 << 20)
}

func main() {
	if err := draw(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "benchchart:", err)
		os.Exit(1)
	}
}

// Measures of the drawing, in px.
const (
	columns     = 2
	panelWidth  = 460
	labelWidth  = 150
	valueWidth  = 130
	barHeight   = 14
	barStep     = 18
	panelHead   = 30
	panelBottom = 16
	margin      = 24
	top         = 64
)

// order is how the servers stand in each panel, and their colours: one for fsxnbd,
// one for what encrypts as well, one for what does not.
var order = []struct{ target, colour string }{
	{"fsx", "#2563b0"},
	{"qemu", "#c8590a"}, {"qemu-luks", "#c8590a"}, {"nbdkit-luks", "#c8590a"},
	{"qemu-raw", "#8d96a3"}, {"memory", "#8d96a3"},
}

const style = `
text { font-family: system-ui, "DejaVu Sans", Helvetica, Arial, sans-serif; fill: #111827; font-size: 12px; }
.title { font-size: 17px; font-weight: bold; }
.job { font-size: 13px; font-weight: bold; }
.small { font-size: 11px; fill: #4b5563; }
.end { text-anchor: end; }
.axis { stroke: #9ca3af; }
.goal { stroke: #111827; stroke-width: 2; stroke-dasharray: 3 2; }
`

var escape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

// draw writes the SVG of the JSON.
func draw(r io.Reader, w io.Writer) error {
	var res results
	if err := json.NewDecoder(r).Decode(&res); err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	if len(res.Jobs) == 0 {
		return fmt.Errorf("read results: they have no job")
	}
	var body strings.Builder
	y := [columns]int{}
	for i := range y {
		y[i] = top
	}
	for _, j := range res.Jobs {
		column := 0 // the shortest
		for c := range y {
			if y[c] < y[column] {
				column = c
			}
		}
		y[column] += panel(&body, j, res.Titles, margin+column*(panelWidth+margin), y[column])
	}
	width, height := margin+columns*(panelWidth+margin), margin
	for _, bottom := range y {
		height = max(height, bottom+margin)
	}
	title := fmt.Sprintf("NBD servers side by side, %s, %s", strings.SplitN(res.Date, "T", 2)[0], res.Commit)
	_, err := fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img">
<title>%s</title>
<style>%s</style>
<rect width="100%%" height="100%%" fill="#ffffff"/>
<text x="%d" y="30" class="title">%s</text>
<text x="%d" y="50" class="small">%s; volumes of %s; %g s a job. Blue: fsxnbd, orange: encrypted too, grey: in the clear. A dashed line is fsxnbd's goal.</text>
%s</svg>
`, width, height, width, height, escape.Replace(title), style, margin, escape.Replace(title), margin, escape.Replace(res.CPU), escape.Replace(res.Size), res.Seconds, body.String())
	return err
}

// panel draws one job at a place and returns its height.
func panel(w io.Writer, j job, titles map[string]string, x, y int) int {
	most := j.goal()
	for _, r := range j.Targets {
		most = max(most, j.value(r))
	}
	scale := float64(panelWidth-labelWidth-valueWidth) / max(most, 1e-9)
	fmt.Fprintf(w, "<text x=\"%d\" y=\"%d\" class=\"job\">%s</text>\n", x, y+18, escape.Replace(j.Job))
	fmt.Fprintf(w, "<text x=\"%d\" y=\"%d\" class=\"small end\">%s, on %s</text>\n", x+panelWidth, y+18, escape.Replace(j.Unit), escape.Replace(j.Place))
	at := y + panelHead
	left := x + labelWidth
	for _, o := range order {
		r, ok := j.Targets[o.target]
		if !ok {
			continue
		}
		title := titles[o.target]
		if title == "" {
			title = o.target
		}
		length := j.value(r) * scale
		fmt.Fprintf(w, "<text x=\"%d\" y=\"%d\" class=\"end\">%s</text>\n", left-6, at+11, escape.Replace(title))
		fmt.Fprintf(w, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", left, at, length, barHeight, o.colour)
		end := length
		if o.target == "fsx" {
			end = max(end, j.goal()*scale) // not under the goal's line
		}
		fmt.Fprintf(w, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", float64(left)+end+5, at+11, j.label(o.target, r))
		at += barStep
	}
	fmt.Fprintf(w, "<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" class=\"axis\"/>\n", left, y+panelHead-3, left, at)
	if goal := j.goal(); goal > 0 {
		gx := float64(left) + goal*scale
		fmt.Fprintf(w, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" class=\"goal\"/>\n", gx, y+panelHead-3, gx, y+panelHead+barHeight+3)
	}
	return at - y + panelBottom
}

// goal is the rate that fsxnbd is to reach: the highest that its goals make of the
// others' rates; 0 without one.
func (j job) goal() float64 {
	most := 0.0
	for target, factor := range j.Goals {
		if r, ok := j.Targets[target]; ok {
			most = max(most, factor*j.value(r))
		}
	}
	return most
}

// label is a bar's rate, and how many times it fsxnbd's is.
func (j job) label(target string, r rates) string {
	text := thousands(j.value(r))
	fsx, ok := j.Targets["fsx"]
	if !ok || target == "fsx" || j.value(r) == 0 {
		return text
	}
	return fmt.Sprintf("%s (fsx %.2f×)", text, j.value(fsx)/j.value(r))
}

// thousands is a rate with its digits in groups.
func thousands(v float64) string {
	digits := fmt.Sprintf("%.0f", v)
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}
