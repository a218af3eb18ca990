package tpmslot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// srkHandle is where the storage root key is kept on machines that were
// provisioned (TCG TPM v2.0 Provisioning Guidance, 7.8).
const srkHandle tpm2.TPMHandle = 0x81000001

// device is an open TPM.
type device struct {
	transport.TPMCloser
}

// open opens a character device, or the unix socket of an emulator. The error
// is ErrNoTPM.
func open(path string) (*device, error) {
	st, err := os.Stat(path)
	var t transport.TPMCloser
	switch {
	case err != nil:
	case st.Mode()&os.ModeSocket != 0:
		t, err = linuxudstpm.Open(path)
	case st.Mode()&os.ModeCharDevice != 0:
		t, err = linuxtpm.Open(path)
	default:
		err = errors.New("neither a device nor a socket")
	}
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, fmt.Errorf("%w at %s: %v", ErrNoTPM, path, err)
	}
	return &device{t}, nil
}

func (d *device) close() { d.Close() }

// parent is the storage key that a sealed object is under.
type parent struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
	flush  func()
}

// findParent returns the storage key with that name, or, if want is nil, the
// one for new objects: the provisioned storage root key if it is an ECC P-256
// key, else one made of the TCG's template. The same TPM makes the same key of
// the same template until it is cleared. The caller flushes it.
//
// That the name is compared keeps who sits on the bus from putting a key of his
// own in place of the one that sessions are salted with.
func (d *device) findParent(want []byte) (*parent, error) {
	if p, err := d.provisioned(); err == nil && (want == nil || bytes.Equal(p.name.Buffer, want)) {
		return p, nil
	}
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(d)
	if err != nil {
		return nil, fmt.Errorf("make storage key: %w", err)
	}
	p := &parent{handle: rsp.ObjectHandle, name: rsp.Name, flush: func() {
		tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(d)
	}}
	pub, err := rsp.OutPublic.Contents()
	if err == nil && want != nil && !bytes.Equal(p.name.Buffer, want) {
		err = ErrOtherTPM
	}
	if err == nil {
		err = nameMatches(pub, p.name)
	}
	if err != nil {
		p.flush()
		return nil, err
	}
	p.public = *pub
	return p, nil
}

var errNotECC = errors.New("not an ecc storage key")

func (d *device) provisioned() (*parent, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: srkHandle}.Execute(d)
	if err != nil {
		return nil, err
	}
	pub, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	a := pub.ObjectAttributes
	ecc, err := pub.Parameters.ECCDetail()
	if err != nil || pub.Type != tpm2.TPMAlgECC || pub.NameAlg != tpm2.TPMAlgSHA256 || ecc.CurveID != tpm2.TPMECCNistP256 ||
		!a.Restricted || !a.Decrypt || !a.FixedTPM || !a.UserWithAuth {
		return nil, errNotECC
	}
	return &parent{srkHandle, rsp.Name, *pub, func() {}}, nameMatches(pub, rsp.Name)
}

// nameMatches checks that a name is that of the public area beside it.
func nameMatches(pub *tpm2.TPMTPublic, name tpm2.TPM2BName) error {
	own, err := tpm2.ObjectName(pub)
	if err != nil {
		return err
	}
	if !bytes.Equal(own.Buffer, name.Buffer) {
		return fmt.Errorf("storage key has another name: %w", ErrTPM)
	}
	return nil
}

// session authorizes the use of the parent. It is salted, and encrypts the
// first parameter both ways.
func (p *parent) session() tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Salted(p.handle, p.public), tpm2.AESEncryption(128, tpm2.EncryptInOut))
}

// policy starts a policy session in which sl's policy has been gone through.
// Its digest is what the TPM computed of its PCRs now.
func (d *device) policy(p *parent, sl *sealed, opts ...tpm2.AuthOption) (s tpm2.Session, digest []byte, end func() error, err error) {
	opts = append(opts, tpm2.Salted(p.handle, p.public), tpm2.AESEncryption(128, tpm2.EncryptOut))
	s, end, err = tpm2.PolicySession(d, tpm2.TPMAlgSHA256, 16, opts...)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("start session: %w", err)
	}
	defer func() {
		if err != nil {
			end()
		}
	}()
	if sl.pcrs != 0 {
		pcrs := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
			{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(sl.pcrs.list()...)}}}
		if _, err = (tpm2.PolicyPCR{PolicySession: s.Handle(), Pcrs: pcrs}).Execute(d); err != nil {
			return nil, nil, nil, fmt.Errorf("pcr policy: %w", err)
		}
	}
	if sl.pin {
		if _, err = (tpm2.PolicyAuthValue{PolicySession: s.Handle()}).Execute(d); err != nil {
			return nil, nil, nil, fmt.Errorf("pin policy: %w", err)
		}
	}
	rsp, err := tpm2.PolicyGetDigest{PolicySession: s.Handle()}.Execute(d)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("policy digest: %w", err)
	}
	return s, rsp.PolicyDigest.Buffer, end, nil
}

// seal seals kek under auth and the policy of sl as the PCRs are now, and fills
// in what the TPM returns. An object with a PIN is under the TPM's protection
// against guessing; one without is not, for it has nothing to guess and must
// open during a lockout, too.
func (d *device) seal(sl *sealed, auth, kek []byte) error {
	p, err := d.findParent(nil)
	if err != nil {
		return err
	}
	defer p.flush()
	_, digest, end, err := d.policy(p, sl)
	if err != nil {
		return err
	}
	end()
	rsp, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: p.handle, Name: p.name, Auth: p.session()},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: auth},
			Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: kek}),
		}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: !sl.pin},
			AuthPolicy:       tpm2.TPM2BDigest{Buffer: digest},
		}),
	}.Execute(d)
	if err != nil {
		return fmt.Errorf("create sealed object: %w", err)
	}
	if copy(sl.policy[:], digest) != len(digest) || copy(sl.parent[:], p.name.Buffer) != nameSize {
		return fmt.Errorf("digest of %d bytes, name of %d: %w", len(digest), len(p.name.Buffer), ErrTPM)
	}
	sl.public, sl.private = rsp.OutPublic.Bytes(), rsp.OutPrivate.Buffer
	return nil
}

// unseal returns the key, which the caller clears. Nothing is tried that counts
// as a guess before the PCRs are known to be right.
func (d *device) unseal(sl *sealed, auth []byte) ([]byte, error) {
	p, err := d.findParent(sl.parent[:])
	if err != nil {
		return nil, err
	}
	defer p.flush()
	public := tpm2.BytesAs2B[tpm2.TPMTPublic](sl.public)
	if pub, err := public.Contents(); err != nil || !bytes.Equal(pub.AuthPolicy.Buffer, sl.policy[:]) {
		return nil, fmt.Errorf("public area of the sealed object: %w", crypt.ErrSlotData)
	}
	obj, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: p.handle, Name: p.name, Auth: p.session()},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: sl.private},
		InPublic:     public,
	}.Execute(d)
	if err != nil {
		return nil, fmt.Errorf("load sealed object: %w", err)
	}
	defer tpm2.FlushContext{FlushHandle: obj.ObjectHandle}.Execute(d)
	s, digest, end, err := d.policy(p, sl, tpm2.Auth(auth))
	if err != nil {
		return nil, err
	}
	defer end()
	if !bytes.Equal(digest, sl.policy[:]) {
		return nil, ErrPolicy
	}
	rsp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: obj.ObjectHandle, Name: obj.Name, Auth: s}}.Execute(d)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	return rsp.OutData.Buffer, nil
}
