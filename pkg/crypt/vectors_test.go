package crypt_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"

	"github.com/fsximg/fsx/pkg/crypt"
)

var update = flag.Bool("update", false, "write testdata/fsx-vectors.json anew: a change of the format")

const vectorFile = "testdata/fsx-vectors.json"

// vectors is testdata/fsx-vectors.json. Derived values that the package keeps
// to itself (PRK, okm, MAC keys) come from reference_test.go.
type vectors struct {
	About     string          `json:"_about"`
	Store     hexBytes        `json:"store"`
	Volume    hexBytes        `json:"volume"`
	DataKeys  []dataKeyVector `json:"data_keys"`
	VolumeKey []volKeyVector  `json:"volume_keys"`
	Authority authorityVector `json:"authority"`
	Nonces    []nonceVector   `json:"nonces"`
	Extents   []extentVector  `json:"extents"`
	Recovery  recoveryVector  `json:"recovery_key"`
	Keyring   keyringVector   `json:"keyring"`
}

type dataKeyVector struct {
	Key    hexBytes `json:"key"`
	PRK    hexBytes `json:"prk"`
	KID    hexBytes `json:"kid"`
	Commit hexBytes `json:"commit"`
}

type volKeyVector struct {
	Key hexBytes `json:"key"`
	PRK hexBytes `json:"prk"`
	ID  hexBytes `json:"id"`
}

type authorityVector struct {
	VolumeKey hexBytes    `json:"volume_key"`
	HeadKey   hexBytes    `json:"head_mac_key"`
	RecordKey hexBytes    `json:"record_mac_key"`
	HedgeKey  hexBytes    `json:"nonce_hedge_key"`
	MACs      []macVector `json:"macs"`
}

type macVector struct {
	Purpose string   `json:"purpose"`
	Message hexBytes `json:"message"`
	MAC     hexBytes `json:"mac"`
}

type nonceVector struct {
	Random  hexBytes `json:"random"`
	Counter uint64   `json:"counter"`
	Seq     uint64   `json:"sequence"`
	Prev    hexBytes `json:"previous_mac"`
	Nonce   hexBytes `json:"nonce"`
}

type extentVector struct {
	Name   string     `json:"name"`
	Mode   string     `json:"mode"`
	Key    hexBytes   `json:"data_key"`
	Nonce  hexBytes   `json:"nonce"`
	Homes  []string   `json:"homes"` // decimal: JSON numbers lose bits
	Rule   string     `json:"plaintext_pattern"`
	SHA    hexBytes   `json:"ciphertext_sha256"`
	First  hexBytes   `json:"first_block_first32"`
	Tags   []hexBytes `json:"tags"`
	OKM    hexBytes   `json:"okm,omitempty"`
	XTSKey hexBytes   `json:"xts_key,omitempty"`
	MACKey hexBytes   `json:"mac_key,omitempty"`
}

type recoveryVector struct {
	Key  hexBytes `json:"key"`
	Text string   `json:"text"`
}

type keyringVector struct {
	MemoryKiB   uint32       `json:"argon2_memory_kib"`
	Passes      uint32       `json:"argon2_passes"`
	Lanes       uint8        `json:"argon2_lanes"`
	Salt        hexBytes     `json:"argon2_salt"`
	Body        hexBytes     `json:"body"`
	Slots       []slotVector `json:"slots"`
	Unknown     hexBytes     `json:"unknown_slot"` // kept, not opened; last
	Bags        []bagVector  `json:"bags"`
	SlotsDigest []hexBytes   `json:"slots_digests"` // by volume_keys
}

type slotVector struct {
	Type      string   `json:"type"`
	Secret    hexBytes `json:"secret"`
	KEK       hexBytes `json:"kek"`
	AD        hexBytes `json:"associated_data"`
	WrapKey   hexBytes `json:"wrapping_key"`
	VolumeKey hexBytes `json:"volume_key"`
	Slot      hexBytes `json:"slot"`
}

type bagVector struct {
	Volume    hexBytes `json:"volume"`
	VolumeKey hexBytes `json:"volume_key"`
	Sealed    hexBytes `json:"sealed"`
	Plain     hexBytes `json:"plaintext"`
	Random    hexBytes `json:"salt_random"`
	Digest    hexBytes `json:"digest"`
}

// counted is SHA256(label || decimal i), concatenated, cut to n bytes.
func counted(label string, n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s%d", label, i))
		b = append(b, sum[:]...)
	}
	return b[:n]
}

// stream replaces the random source by a counted one and keeps what was drawn.
type stream struct {
	n     int
	drawn [][]byte
}

func (s *stream) fill(b []byte) {
	copy(b, counted(fmt.Sprintf("random-%d-", s.n), len(b)))
	s.n++
	s.drawn = append(s.drawn, bytes.Clone(b))
}

func buildVectors() *vectors {
	s := &stream{}
	defer crypt.SetRandom(s.fill)()
	v := &vectors{
		About:  "Frozen vectors of docs/crypto.md. Hex unless noted; patterns are SHA256(label || decimal i) concatenated. " + warning,
		Store:  counted("store-", 16),
		Volume: counted("volume-", 16),
	}
	for i := range 4 {
		key := counted(fmt.Sprintf("data-key-%d-", i), 64)
		k := crypt.DataKeyFrom(key, crypt.AES256GCM)
		id, commit := k.ID(), crypt.CommitOf(k)
		v.DataKeys = append(v.DataKeys, dataKeyVector{key, refPRK(key), id[:], commit[:]})
	}
	for i := range 2 {
		key := counted(fmt.Sprintf("volume-key-%d-", i), 32)
		id := crypt.VolumeKeyFrom(key).ID()
		v.VolumeKey = append(v.VolumeKey, volKeyVector{key, refPRK(key), id[:]})
	}
	v.buildAuthority(s)
	v.buildExtents()
	v.Recovery.Key = counted("recovery-", 32)
	v.Recovery.Text = crypt.RecoveryText(v.Recovery.Key)
	v.buildKeyring(s)
	return v
}

const warning = "Every key here is public: use none of them."

func (v *vectors) buildAuthority(s *stream) {
	key := v.VolumeKey[0].Key
	a := must(crypt.NewAuthority(crypt.VolumeKeyFrom(key), crypt.UUID(v.Store), crypt.UUID(v.Volume)))
	derive := func(label byte, n int) []byte { return refExpand(refPRK(key), n, fsx(label), v.Store, v.Volume) }
	v.Authority = authorityVector{VolumeKey: key, HeadKey: derive(0x23, 32), RecordKey: derive(0x24, 32), HedgeKey: derive(0x25, 64)}
	for _, n := range []int{0, 1, 100} {
		msg := counted("message-", n)
		head, record := a.MAC(crypt.PurposeHead, msg), a.MAC(crypt.PurposeRecord, msg[:n/2], msg[n/2:])
		v.Authority.MACs = append(v.Authority.MACs, macVector{"head", msg, head[:]}, macVector{"record", msg, record[:]})
	}
	for i, counter := range []uint64{1, 2, 1 << 33} {
		crypt.SetSealed(counter - 1)
		prev := [32]byte(counted("previous-", 32))
		n := must(crypt.NonceOf(a, uint64(i)<<40, &prev))
		v.Nonces = append(v.Nonces, nonceVector{s.drawn[len(s.drawn)-1], counter, uint64(i) << 40, prev[:], n[:]})
	}
}

func (v *vectors) buildExtents() {
	homes := map[string][]uint64{
		"one":       {0},
		"scattered": {7, 3, 1<<51 - 1, 0, 78187493530},
		"descend":   {9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 0, 1 << 40},
	}
	for i, mode := range allModes {
		for _, name := range []string{"one", "scattered", "descend"} {
			h := homes[name]
			key, label := v.DataKeys[i].Key, fmt.Sprintf("%s-%s-", mode, name)
			nonce := counted("nonce-"+label, 16)
			e := must(crypt.DataKeyFrom(key, mode).Extent(crypt.Nonce(nonce), len(h)))
			buf, tags := pattern(label, len(h)), make([]crypt.Tag, len(h))
			e.SealWith(buf, h, tags)
			sum := sha256.Sum256(buf)
			x := extentVector{Name: name, Mode: mode.String(), Key: key, Nonce: nonce, Rule: label, SHA: sum[:], First: buf[:32]}
			for j := range h {
				x.Homes = append(x.Homes, fmt.Sprint(h[j]))
				x.Tags = append(x.Tags, tags[j][:])
			}
			if prk := refPRK(key); mode == crypt.AES256XTS {
				x.XTSKey = refExpand(prk, 64, []byte("fscrypt\x00\x09"), nonce)
				x.MACKey = refExpand(prk, 32, fsx(0x11), nonce)
			} else {
				x.OKM = refExpand(prk, 64, fsx(0x10), []byte{byte(mode), 12}, nonce)
			}
			v.Extents = append(v.Extents, x)
		}
	}
}

func (v *vectors) secrets() []crypt.Secret {
	return []crypt.Secret{
		passphrase("correct horse battery staple"),
		must(crypt.NewKeyFile(counted("key-file-", 48))),
		must(crypt.ParseRecoveryKey(v.Recovery.Text)),
		crypt.NewClear(),
	}
}

func (v *vectors) buildKeyring(s *stream) {
	k := must(crypt.NewKeyring(crypt.UUID(v.Store), fastKDF))
	v.Keyring = keyringVector{MemoryKiB: fastKDF.MemoryKiB, Passes: fastKDF.Passes, Lanes: fastKDF.Lanes, Salt: s.drawn[len(s.drawn)-1]}
	raw := [][]byte{[]byte("correct horse battery staple"), counted("key-file-", 48), v.Recovery.Key, make([]byte, 32)}
	for i, sec := range v.secrets() {
		for j, key := range v.VolumeKey {
			if j == 1 && i > 0 {
				break // the second volume key has a passphrase only
			}
			must(k.AddSlot(crypt.VolumeKeyFrom(key.Key), sec))
			kek := raw[i]
			if sec.Type() == crypt.SlotPassphrase {
				kek = refArgon2(kek, v.Keyring.Salt, fastKDF.MemoryKiB, fastKDF.Passes, fastKDF.Lanes)
			}
			v.Keyring.Slots = append(v.Keyring.Slots, slotVector{Type: sec.Type().String(), Secret: raw[i], KEK: kek, VolumeKey: key.Key})
		}
	}
	for i, vol := range [][]byte{v.Volume, counted("volume-2-", 16)} {
		bag := crypt.NewBag()
		for j, mode := range allModes[:3-2*i] {
			_ = bag.Add(crypt.DataKeyFrom(v.DataKeys[j].Key, mode), j == 0)
		}
		bag.AddBytes(bag.WriteKey().ID(), 1<<40+12345)
		if err := k.SetBag(crypt.UUID(vol), crypt.VolumeKeyFrom(v.VolumeKey[i].Key), bag); err != nil {
			panic(err)
		}
		sum, _ := k.BagDigest(crypt.UUID(vol))
		v.Keyring.Bags = append(v.Keyring.Bags, bagVector{Volume: vol, VolumeKey: v.VolumeKey[i].Key, Random: s.drawn[len(s.drawn)-1], Digest: sum[:]})
	}
	v.Keyring.Body = addUnknownSlot(k.Encode())
	for _, key := range v.VolumeKey {
		sum := must(crypt.ParseKeyring(v.Keyring.Body, crypt.UUID(v.Store))).SlotsDigest(crypt.ID(key.ID))
		v.Keyring.SlotsDigest = append(v.Keyring.SlotsDigest, sum[:])
	}
	v.cutKeyring()
}

// addUnknownSlot appends a slot of a type of the future behind the last slot.
func addUnknownSlot(body []byte) []byte {
	n := binary.BigEndian.Uint32(body[68:])
	at := 80
	for range n {
		at += 40 + int(binary.BigEndian.Uint32(body[at+4:]))
	}
	unknown := cat([]byte{0x7f, 0}, be16(40), be32(5), body[88:104], counted("unknown-", 16), []byte("later"))
	out := cat(body[:at], unknown, body[at:])
	binary.BigEndian.PutUint32(out[68:], n+1)
	return out
}

// cutKeyring takes the slots and bags out of the body, as a reader would.
func (v *vectors) cutKeyring() {
	k := &v.Keyring
	rest := k.Body[80:]
	for i := range k.Slots {
		n := 40 + int(binary.BigEndian.Uint32(rest[4:]))
		s := &k.Slots[i]
		s.Slot, rest = rest[:n], rest[n:]
		s.AD, s.WrapKey, _ = refSlotKeys(v.Store, s.Slot[:40], s.KEK)
	}
	k.Unknown, rest = rest[:45], rest[45:]
	for len(rest) > 0 {
		n := 100 + int(binary.BigEndian.Uint32(rest[96:]))
		for i := range k.Bags {
			if b := &k.Bags[i]; bytes.Equal(b.Volume, rest[:16]) {
				b.Sealed = rest[:n]
				b.Plain = refOpenBag(v.Store, b.Sealed, b.VolumeKey)
			}
		}
		rest = rest[n:]
	}
}
