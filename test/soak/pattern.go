package main

import "encoding/binary"

// unitSize is the piece of the volume whose content has a version of its own.
const unitSize = 512

// step is the difference of two neighbouring words of a unit: any odd number.
const step = 0x9e3779b97f4a7c15

// first is the first word of a unit's content in a version. Two units, or two
// versions of one, have different ones but for a chance of 2^-64.
func first(seed, unit uint64, version uint32) uint64 {
	// the finalizer of SplitMix64 (Steele, Lea, Flood 2014), twice
	return mix(mix(seed^unit) + uint64(version))
}

func mix(x uint64) uint64 {
	x += step
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fill writes the content that begins with the word w into one unit.
func fill(p []byte, w uint64) {
	p = p[:unitSize]
	for len(p) >= 32 {
		binary.LittleEndian.PutUint64(p, w)
		binary.LittleEndian.PutUint64(p[8:], w+step)
		binary.LittleEndian.PutUint64(p[16:], w+stepTwo)
		binary.LittleEndian.PutUint64(p[24:], w+stepThree)
		w += stepFour
		p = p[32:]
	}
}

// Multiples of step, modulo 2^64.
const (
	stepTwo   = step * 2 & (1<<64 - 1)
	stepThree = step * 3 & (1<<64 - 1)
	stepFour  = step * 4 & (1<<64 - 1)
)

// differs is the place of the first word of a unit that is not the content
// beginning with w, or -1.
func differs(p []byte, w uint64) int {
	p = p[:unitSize]
	for at := 0; at < unitSize; at += 32 {
		q := p[at : at+32]
		bad := binary.LittleEndian.Uint64(q) ^ w
		bad |= binary.LittleEndian.Uint64(q[8:]) ^ (w + step)
		bad |= binary.LittleEndian.Uint64(q[16:]) ^ (w + stepTwo)
		bad |= binary.LittleEndian.Uint64(q[24:]) ^ (w + stepThree)
		if bad != 0 {
			return at
		}
		w += stepFour
	}
	return -1
}

// nonZero is the place of the first word of p, of any length, that is not zero,
// or -1.
func nonZero(p []byte) int {
	at := 0
	for ; at+8 <= len(p); at += 8 {
		if binary.LittleEndian.Uint64(p[at:]) != 0 {
			return at
		}
	}
	for ; at < len(p); at++ {
		if p[at] != 0 {
			return at
		}
	}
	return -1
}
