package crypt_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/fsximg/fsx/pkg/crypt"
)

// hexBytes is hexadecimal in JSON.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// golden is what others made: a Linux kernel, OpenSSL, Python.
type golden struct {
	Kernel struct {
		Vectors []struct {
			Name      string
			MasterKey hexBytes   `json:"master_key"`
			ID        hexBytes   `json:"key_identifier"`
			PRK       hexBytes   `json:"prk"`
			FileKey   hexBytes   `json:"per_file_key"`
			PlainSHA  hexBytes   `json:"plaintext_sha256"`
			UnitSHA   []hexBytes `json:"ciphertext_unit_sha256"`
		}
	} `json:"fscrypt_v2_ext4_kernel"`
	Identifiers struct {
		IDs map[string]hexBytes
	} `json:"fscrypt_key_identifiers_kernel"`
	PerExtent struct {
		Vectors []struct {
			Name      string
			MasterKey hexBytes `json:"master_key"`
			Nonce     hexBytes `json:"extent_nonce"`
			Blocks    int
			PlainSHA  hexBytes `json:"plaintext_sha256"`
			SHA       hexBytes `json:"ciphertext_sha256"`
			First     hexBytes `json:"first_block_first32"`
			Last      hexBytes `json:"last_block_first32"`
		}
	} `json:"fscrypt_per_extent_ctx9"`
	Proposed struct {
		MasterKey hexBytes `json:"master_key"`
		ID        hexBytes `json:"key_identifier"`
		Commit    hexBytes `json:"key_commit"`
		Extents   []struct {
			Name     string
			Mode     crypt.Mode
			Nonce    hexBytes `json:"extent_nonce"`
			Home     uint64   `json:"home_block"`
			Blocks   int
			OKM      hexBytes
			PlainSHA hexBytes `json:"plaintext_sha256"`
			SHA      hexBytes `json:"ciphertext_sha256"`
			Tags     hexBytes
		}
	} `json:"fsx_proposed_v1"`
}

func loadGolden(t *testing.T) (g golden) {
	t.Helper()
	b, err := os.ReadFile("testdata/crypto-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

// pattern is SHA256(prefix || decimal i), concatenated, n blocks of it.
func pattern(prefix string, n int) []byte {
	b := make([]byte, 0, n*crypt.BlockSize+crypt.Slack)
	for i := 0; len(b) < n*crypt.BlockSize; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s%d", prefix, i))
		b = append(b, sum[:]...)
	}
	return b
}

func wantBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s = %x, want %x", what, got, want)
	}
}

func wantSHA(t *testing.T, what string, data, want []byte) {
	t.Helper()
	sum := sha256.Sum256(data)
	wantBytes(t, "SHA-256 of "+what, sum[:], want)
}

func TestKernelKeyIdentifiers(t *testing.T) {
	g := loadGolden(t)
	for _, v := range g.Kernel.Vectors {
		id := crypt.KeyIdentifier(v.MasterKey)
		wantBytes(t, v.Name, id[:], v.ID)
		wantBytes(t, v.Name+" prk", refPRK(v.MasterKey), v.PRK)
	}
	for size, want := range g.Identifiers.IDs {
		id := crypt.KeyIdentifier(make([]byte, must(strconv.Atoi(size))))
		wantBytes(t, "zero key of "+size, id[:], want)
	}
	if len(g.Kernel.Vectors) != 3 || len(g.Identifiers.IDs) != 5 {
		t.Fatal("vectors are missing")
	}
}

// The kernel's own ciphertext, by the file key: our XTS is the kernel's.
func TestKernelXTS(t *testing.T) {
	for _, v := range loadGolden(t).Kernel.Vectors {
		plain := pattern(v.Name+"-", 3)
		clear(plain[8192:10240])
		if v.Name == "K64b" {
			copy(plain, bytes.Repeat([]byte("DIRTY"), 100))
			copy(plain[4096:], bytes.Repeat([]byte("LATER"), 100))
		}
		wantSHA(t, v.Name+" plaintext", plain, v.PlainSHA)
		for i, want := range v.UnitSHA {
			block := plain[i*crypt.BlockSize:][:crypt.BlockSize]
			crypt.EncryptXTS(v.FileKey, block, uint64(i))
			wantSHA(t, fmt.Sprintf("%s unit %d", v.Name, i), block, want)
		}
	}
}

func TestPerExtentContext9(t *testing.T) {
	g := loadGolden(t)
	for _, v := range g.PerExtent.Vectors {
		e := must(crypt.DataKeyFrom(v.MasterKey, crypt.AES256XTS).Extent(crypt.Nonce(v.Nonce), v.Blocks))
		buf := pattern("ext-"+v.Name+"-", v.Blocks)
		wantSHA(t, v.Name+" plaintext", buf, v.PlainSHA)
		e.SealWith(buf, make([]uint64, v.Blocks), make([]crypt.Tag, v.Blocks))
		wantSHA(t, v.Name+" ciphertext", buf, v.SHA)
		wantBytes(t, v.Name+" first", buf[:32], v.First)
		wantBytes(t, v.Name+" last", buf[(v.Blocks-1)*crypt.BlockSize:][:32], v.Last)
	}
	if len(g.PerExtent.Vectors) != 3 {
		t.Fatal("vectors are missing")
	}
}

func TestProposedV1(t *testing.T) {
	p := loadGolden(t).Proposed
	id := crypt.KeyIdentifier(p.MasterKey)
	wantBytes(t, "key identifier", id[:], p.ID)
	commit := crypt.CommitOf(crypt.DataKeyFrom(p.MasterKey, crypt.AES256GCM))
	wantBytes(t, "commitment", commit[:], p.Commit)
	for _, v := range p.Extents {
		okm := refExpand(refPRK(p.MasterKey), 64, fsx(0x10), []byte{byte(v.Mode), 12}, v.Nonce)
		wantBytes(t, v.Name+" okm", okm, v.OKM)
		homes := make([]uint64, v.Blocks)
		for i := range homes {
			homes[i] = v.Home + uint64(i)
		}
		buf := pattern("fsx-"+v.Name+"-", v.Blocks)
		plain := bytes.Clone(buf)
		wantSHA(t, v.Name+" plaintext", buf, v.PlainSHA)
		e := must(crypt.DataKeyFrom(p.MasterKey, v.Mode).Extent(crypt.Nonce(v.Nonce), v.Blocks))
		tags := make([]crypt.Tag, v.Blocks)
		e.SealWith(buf, homes, tags)
		wantSHA(t, v.Name+" ciphertext", buf, v.SHA)
		for i := range homes {
			wantBytes(t, fmt.Sprintf("%s tag %d", v.Name, i), tags[i][:], v.Tags[16*i:16*i+16])
			if err := e.Open(buf[i*crypt.BlockSize:][:crypt.BlockSize], homes[i], i, &tags[i]); err != nil {
				t.Errorf("%s block %d: %v", v.Name, i, err)
			}
		}
		wantBytes(t, v.Name+" opened", buf, plain)
	}
	if len(p.Extents) != 4 {
		t.Fatal("vectors are missing")
	}
}
