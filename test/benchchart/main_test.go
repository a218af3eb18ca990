package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

const example = `{"date": "2026-11-27T01:02:03Z", "commit": "abc", "cpu": "a <fast> & good one", "size": "2G", "seconds": 30,
"titles": {"fsx": "fsxnbd", "qemu": "qemu-nbd qcow2+LUKS", "memory": "nbdkit memory"},
"jobs": [
 {"job": "randread", "place": "tmpfs", "unit": "requests/s", "goals": {"qemu": 5, "memory": 0.9}, "targets": {
  "fsx": {"iops": 55000, "bytes_per_second": 225280000}, "qemu": {"iops": 11000, "bytes_per_second": 45056000},
  "memory": {"iops": 100000, "bytes_per_second": 409600000}}},
 {"job": "copyout", "place": "tmpfs", "unit": "MiB/s", "goals": {}, "targets": {"fsx": {"iops": null, "bytes_per_second": 1572864000}}}]}`

// texts parses a drawing, which must be well formed, and returns its texts and the
// widths of its bars.
func texts(t *testing.T, svg []byte) (found []string, bars []string) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found, bars
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		switch token := token.(type) {
		case xml.CharData:
			if s := strings.TrimSpace(string(token)); s != "" {
				found = append(found, s)
			}
		case xml.StartElement:
			for _, a := range token.Attr {
				if token.Name.Local == "rect" && a.Name.Local == "width" && a.Value != "100%" {
					bars = append(bars, a.Value)
				}
			}
		}
	}
}

func TestDraw(t *testing.T) {
	var out bytes.Buffer
	if err := draw(strings.NewReader(example), &out); err != nil {
		t.Fatal(err)
	}
	found, bars := texts(t, out.Bytes())
	all := strings.Join(found, "\n")
	for _, want := range []string{"randread", "requests/s, on tmpfs", "55,000", "11,000 (fsx 5.00×)", "100,000 (fsx 0.55×)", "copyout", "1,500", "a <fast> & good one"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	// the highest rate is as long as there is room: 460 - 150 - 130
	if got := strings.Join(bars, " "); got != "99.0 19.8 180.0 180.0" {
		t.Errorf("the bars are %s px long", got)
	}
	if n := strings.Count(out.String(), `class="goal"`); n != 1 {
		t.Errorf("%d goals", n)
	}
}

func TestNothingToDraw(t *testing.T) {
	for _, input := range []string{"", "{}", `{"jobs": []}`} {
		if err := draw(strings.NewReader(input), io.Discard); err == nil {
			t.Errorf("%q was drawn", input)
		}
	}
}
