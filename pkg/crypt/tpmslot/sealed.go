package tpmslot

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/fsximg/fsx/pkg/crypt"
)

const (
	maxPCR       = 23
	bankSHA256   = 0x000b // TPM_ALG_SHA256
	flagPIN      = 0x01
	sealedHeader = 114
	maxBlob      = 1024 // of a public or private area, bytes
	saltSize     = 32
	nameSize     = 34 // of an object whose name algorithm is SHA-256
)

// PCRs is a set of the platform configuration registers 0 to 23: bit i is
// register i.
type PCRs uint32

// ParsePCRs reads "7+11"; the empty text is the empty set.
func ParsePCRs(text string) (PCRs, error) {
	var p PCRs
	if text == "" {
		return 0, nil
	}
	for part := range strings.SplitSeq(text, "+") {
		n, err := strconv.ParseUint(part, 10, 8)
		if err != nil || n > maxPCR {
			return 0, fmt.Errorf("pcr %q is not a number from 0 to %d: %w", part, maxPCR, ErrPCRs)
		}
		p |= 1 << n
	}
	return p, nil
}

// String is what ParsePCRs reads.
func (p PCRs) String() string {
	var l []string
	for _, n := range p.list() {
		l = append(l, strconv.Itoa(int(n)))
	}
	return strings.Join(l, "+")
}

func (p PCRs) list() (l []uint) {
	for i := range uint(maxPCR + 1) {
		if p&(1<<i) != 0 {
			l = append(l, i)
		}
	}
	return l
}

// sealed is the data of a slot: what a TPM needs to give the key back. None of
// it is secret. Integers are big endian.
//
//	0   4  "FSXT"
//	4   1  version, 1
//	5   1  flags: 01 a PIN is needed
//	6   2  PCR bank, TPM_ALG_ID: 000b SHA-256
//	8   4  PCRs, bit i is PCR i; bits 24 to 31 are zero
//	12  2  p, length of the public area, 1 to 1024
//	14  2  q, length of the private area, 1 to 1024
//	16  32 salt of the PIN; zero without one
//	48  32 policy digest
//	80  34 name of the parent: 000b and SHA-256 of its public area
//	114 p  TPMT_PUBLIC of the sealed object
//	    q  its private area, the content of a TPM2B_PRIVATE
type sealed struct {
	pin     bool
	pcrs    PCRs
	salt    [saltSize]byte
	policy  [32]byte
	parent  [nameSize]byte
	public  []byte
	private []byte
}

func (s *sealed) encode() []byte {
	b := []byte{'F', 'S', 'X', 'T', 1, 0}
	if s.pin {
		b[5] = flagPIN
	}
	b = binary.BigEndian.AppendUint16(b, bankSHA256)
	b = binary.BigEndian.AppendUint32(b, uint32(s.pcrs))
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.public)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.private)))
	b = append(b, s.salt[:]...)
	b = append(b, s.policy[:]...)
	b = append(b, s.parent[:]...)
	b = append(b, s.public...)
	return append(b, s.private...)
}

// Describe tells what a slot with that data is bound to, beside its TPM. Whoever
// writes the keyring can say anything there. The error is crypt.ErrSlotData.
func Describe(data string) (pcrs PCRs, pin bool, err error) {
	s, err := decode([]byte(data))
	if err != nil {
		return 0, false, err
	}
	return s.pcrs, s.pin, nil
}

// decode reads what encode wrote and nothing else. The error is
// crypt.ErrSlotData.
func decode(b []byte) (*sealed, error) {
	bad := func(what string) (*sealed, error) { return nil, fmt.Errorf("%s: %w", what, crypt.ErrSlotData) }
	if len(b) < sealedHeader || string(b[:4]) != "FSXT" {
		return bad("not a sealed key")
	}
	p, q := int(binary.BigEndian.Uint16(b[12:])), int(binary.BigEndian.Uint16(b[14:]))
	s := &sealed{
		pin:    b[5] == flagPIN,
		pcrs:   PCRs(binary.BigEndian.Uint32(b[8:])),
		salt:   [saltSize]byte(b[16:]),
		policy: [32]byte(b[48:]),
		parent: [nameSize]byte(b[80:]),
	}
	switch {
	case b[4] != 1:
		return bad(fmt.Sprintf("version %d", b[4]))
	case b[5] > flagPIN:
		return bad("flags")
	case binary.BigEndian.Uint16(b[6:]) != bankSHA256:
		return bad("pcr bank")
	case s.pcrs>>(maxPCR+1) != 0:
		return bad("pcrs")
	case !s.pin && s.salt != [saltSize]byte{}:
		return bad("salt without a pin")
	case binary.BigEndian.Uint16(s.parent[:]) != bankSHA256:
		return bad("name of the parent")
	case p == 0 || p > maxBlob || q == 0 || q > maxBlob || len(b) != sealedHeader+p+q:
		return bad("lengths")
	}
	s.public, s.private = b[sealedHeader:][:p:p], b[sealedHeader+p:]
	return s, nil
}
