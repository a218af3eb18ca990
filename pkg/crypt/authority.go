package crypt

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
)

// Purpose says what a MAC is for; each has its own key.
type Purpose uint8

const (
	// PurposeHead authenticates a volume's head.
	PurposeHead Purpose = iota
	// PurposeRecord authenticates a commit record.
	PurposeRecord

	purposes
)

// Authority is what a volume key derives for one volume: the MAC keys of head
// and log, and the key that hedges nonces. It is safe for concurrent use.
//
// Its memory is two cells: the absorbed HMAC-SHA-256 keys by purpose, and the
// absorbed HMAC-SHA-512 key of the hedge.
type Authority struct {
	redact
	mu    sync.RWMutex
	macs  *cell // nil once wiped
	hedge *cell
}

// NewAuthority derives the authority of volume key vk over volume vol.
func NewAuthority(vk *VolumeKey, store, vol UUID) (*Authority, error) {
	a := &Authority{macs: newCell(int(purposes) * prf256), hedge: newCell(prf512)}
	ownedBy(a, a.macs)
	ownedBy(a, a.hedge)
	err := vk.use(func(_, prf []byte) error {
		a.init(prf, store, vol)
		return nil
	})
	if err != nil {
		a.Wipe()
		return nil, fmt.Errorf("derive authority over volume %s: %w", vol, err)
	}
	return a, nil
}

func (a *Authority) init(prf []byte, store, vol UUID) {
	var okm [64]byte
	defer clear(okm[:])
	h256, h512 := get256(), get512()
	defer h256.put(&pool256)
	defer h512.put(&pool512)
	for p, label := range []byte{PurposeHead: labelHeadMAC, PurposeRecord: labelRecordMAC} {
		expandFSX(okm[:32], prf, label, store[:], vol[:])
		h256.absorb(a.macs.b[p*prf256:(p+1)*prf256], okm[:32])
	}
	expandFSX(okm[:], prf, labelNonceHedge, store[:], vol[:])
	h512.absorb(a.hedge.b, okm[:])
}

// Wipe destroys the derived keys. Whoever may still make MACs must have
// stopped: MAC panics afterwards.
func (a *Authority) Wipe() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.macs.free()
	a.hedge.free()
	a.macs, a.hedge = nil, nil
}

// MAC is HMAC-SHA-256 over the concatenation of parts, whose lengths must
// follow from what they say. It panics after Wipe, because no other answer
// could be written to disk harmlessly.
func (a *Authority) MAC(p Purpose, parts ...[]byte) (mac [32]byte) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.macs == nil {
		panic("crypt: MAC by a wiped authority")
	}
	a.sum(&mac, p, parts)
	return mac
}

// Verify compares in constant time. A wiped authority verifies nothing.
func (a *Authority) Verify(p Purpose, mac *[32]byte, parts ...[]byte) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.macs == nil {
		return false
	}
	var want [32]byte
	a.sum(&want, p, parts)
	return subtle.ConstantTimeCompare(want[:], mac[:]) == 1
}

func (a *Authority) sum(mac *[32]byte, p Purpose, parts [][]byte) {
	if p >= purposes {
		panic("crypt: unknown MAC purpose")
	}
	prf := a.macs.b[int(p)*prf256 : (int(p)+1)*prf256]
	h := get256()
	h.begin(prf)
	for _, b := range parts {
		h.h.Write(b)
	}
	copy(mac[:], h.finish(prf))
	h.put(&pool256)
}

// sealed counts the extents this process has sealed. It goes into every nonce,
// so that a random source that repeats does not repeat a nonce.
var sealed atomic.Uint64

// nonce draws an extent's nonce:
//
//	HMAC-SHA-512(hedge key, 32 random || be64 counter || be64 seq || prev)[0:16]
func (a *Authority) nonce(seq uint64, prev *[32]byte) (n Nonce, err error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.hedge == nil {
		return n, fmt.Errorf("draw nonce: %w", ErrWiped)
	}
	h := get512()
	defer h.put(&pool512)
	in := h.pad[:80]
	random(in[:32])
	binary.BigEndian.PutUint64(in[32:], sealed.Add(1))
	binary.BigEndian.PutUint64(in[40:], seq)
	copy(in[48:], prev[:])
	h.begin(a.hedge.b)
	h.h.Write(in)
	copy(n[:], h.finish(a.hedge.b))
	return n, nil
}

// Seal encrypts an extent in place under k and a fresh nonce, which it returns.
// buf holds len(homes) blocks, 1 to MaxExtentBlocks; block i belongs at
// homes[i], and tags[i] gets its tag. cap(buf) must exceed len(buf) by Slack,
// and those bytes are clobbered. seq and prev are the commit's sequence and the
// MAC of the record before it; they hedge the nonce.
//
// Each call draws another nonce. What was sealed is written as it is or
// dropped; after an error the contents of buf and tags are undefined.
func (a *Authority) Seal(k *DataKey, buf []byte, homes []uint64, tags []Tag, seq uint64, prev *[32]byte) (Nonce, error) {
	n := len(homes)
	if n < 1 || n > MaxExtentBlocks || len(buf) != n*BlockSize || len(tags) != n || cap(buf) < len(buf)+Slack {
		return Nonce{}, fmt.Errorf("seal extent of %d blocks: %w", n, ErrBuffer)
	}
	nonce, err := a.nonce(seq, prev)
	if err != nil {
		return Nonce{}, fmt.Errorf("seal extent: %w", err)
	}
	e, err := k.Extent(nonce, n)
	if err != nil {
		return Nonce{}, fmt.Errorf("seal extent: %w", err)
	}
	s := scratches.Get().(*scratch)
	for i := range homes {
		e.seal(s, buf[i*BlockSize:], homes[i], i, &tags[i])
	}
	scratches.Put(s)
	return nonce, nil
}
