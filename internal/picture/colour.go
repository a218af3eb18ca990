package picture

import (
	"fmt"
	"hash/fnv"
)

// A colour is the same one on a page and in a terminal.
type colour struct {
	r, g, b  uint8
	terminal uint8 // its number among the 256 of a terminal, where it is lighter
}

// palette's colours stand out from white (at least 3:1) and from each other.
var palette = [...]colour{
	{0x25, 0x63, 0xb0, 33},  // blue
	{0xc8, 0x59, 0x0a, 208}, // orange
	{0x2e, 0x7d, 0x32, 34},  // green
	{0x7b, 0x3f, 0xb5, 135}, // purple
	{0xc6, 0x28, 0x39, 203}, // red
	{0x0e, 0x8a, 0x8f, 44},  // teal
	{0x6b, 0x44, 0x23, 137}, // brown
	{0xd0, 0x45, 0x8f, 213}, // pink
	{0x8a, 0x7d, 0x0a, 184}, // olive
	{0x2f, 0x8f, 0xd0, 117}, // sky
}

var (
	white  = colour{0xff, 0xff, 0xff, 15}
	black  = colour{0, 0, 0, 0}
	others = colour{0x64, 0x6b, 0x78, 245} // of classes that share one
	zeros  = colour{0xa3, 0xad, 0xbb, 250}
	holes  = colour{0xea, 0xed, 0xf2, 238}
	noKey  = colour{0x4b, 0x55, 0x63, 245}
)

func (c colour) String() string { return fmt.Sprintf("#%02x%02x%02x", c.r, c.g, c.b) }

// toward is c, a part of the way (0 to 1) to d.
func (c colour) toward(d colour, part float64) colour {
	mix := func(a, b uint8) uint8 { return uint8(float64(a) + part*(float64(b)-float64(a)) + 0.5) }
	return colour{mix(c.r, d.r), mix(c.g, d.g), mix(c.b, d.b), c.terminal}
}

// colours gives each name one colour. A name has the same one in every picture,
// unless a name that was there before it has it already: then it has the next that
// is free. When the palette is used up a darker and a lighter one follow, and only
// then do two names share a colour.
type colours struct {
	byName map[string]colour
	used   map[int]bool
}

func newColours() *colours { return &colours{map[string]colour{}, map[int]bool{}} }

func (c *colours) of(name string) colour {
	if have, ok := c.byName[name]; ok {
		return have
	}
	at := c.free(name)
	c.used[at] = true
	got := palette[at%len(palette)]
	switch at / len(palette) {
	case 1:
		got = got.toward(black, 0.4)
	case 2:
		got = got.toward(white, 0.3)
	}
	c.byName[name] = got
	return got
}

// free is the number of the colour for a new name.
func (c *colours) free(name string) int {
	h := fnv.New32a()
	h.Write([]byte(name))
	first := int(h.Sum32() % uint32(len(palette)))
	for tone := range 3 {
		for i := range palette {
			if at := tone*len(palette) + (first+i)%len(palette); !c.used[at] {
				return at
			}
		}
	}
	return first
}
