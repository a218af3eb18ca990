package cliutil

import (
	"bytes"
	"fmt"
	"path/filepath"

	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/crypt/tpmslot"
	"github.com/urfave/cli/v2"
)

// tpmFlags are the options of a TPM slot; prefix is "" or "new-". Only who
// makes a slot says which PCRs.
func tpmFlags(prefix string, makes bool) []cli.Flag {
	usage := "open with a TPM 2.0"
	if makes {
		usage = "add a slot that this machine's TPM 2.0 opens"
	}
	flags := []cli.Flag{
		&cli.BoolFlag{Name: prefix + "tpm2", Usage: usage},
		&cli.StringFlag{Name: prefix + "tpm2-device", Usage: "the TPM's device, or the unix socket of an emulator, `PATH`", DefaultText: tpmslot.DefaultDevice},
		&cli.StringFlag{Name: prefix + "tpm2-pin-file", Usage: "PIN of the TPM slot in `FILE` (- is stdin)"},
	}
	if makes {
		flags = append(flags, &cli.StringFlag{Name: prefix + "tpm2-pcrs",
			Usage: "PCRs that must not change, `N+N…` ('' is none)", DefaultText: tpmslot.DefaultPCRs.String()})
	}
	return flags
}

// TPM2Slot are the options of a new TPM slot as they go to a server.
type TPM2Slot struct {
	Device string `json:"device,omitempty"` // absolute; empty: the default
	PCRs   string `json:"pcrs"`             // "7+11"; empty: none
}

func (t *TPM2Slot) options() (o tpmslot.Options, err error) {
	o.Device = t.Device
	o.PCRs, err = tpmslot.ParsePCRs(t.PCRs)
	return o, err
}

// tpmFlagValues reads the options; nil without --tpm2. The caller clears pin.
func (e *Env) tpmFlagValues(c *cli.Context, prefix string) (t *TPM2Slot, pin []byte, err error) {
	if !c.Bool(prefix + "tpm2") {
		for _, name := range []string{"tpm2-device", "tpm2-pin-file", "tpm2-pcrs"} {
			if c.IsSet(prefix + name) {
				return nil, nil, UsageErrorf("--%s needs --%s", prefix+name, prefix+"tpm2")
			}
		}
		return nil, nil, nil
	}
	t = &TPM2Slot{PCRs: tpmslot.DefaultPCRs.String()}
	if d := c.String(prefix + "tpm2-device"); d != "" {
		if t.Device, err = filepath.Abs(d); err != nil {
			return nil, nil, fmt.Errorf("--%stpm2-device: %w", prefix, err)
		}
	}
	if c.IsSet(prefix + "tpm2-pcrs") {
		t.PCRs = c.String(prefix + "tpm2-pcrs")
	}
	if _, err := t.options(); err != nil {
		return nil, nil, fmt.Errorf("--%stpm2-pcrs: %w", prefix, err)
	}
	if path := c.String(prefix + "tpm2-pin-file"); path != "" {
		if pin, err = e.readPIN(path); err != nil {
			return nil, nil, keyError("--"+prefix+"tpm2-pin-file "+path, err)
		}
	}
	return t, pin, nil
}

func (e *Env) readPIN(path string) ([]byte, error) {
	b, err := e.readSecret(path, false)
	if err != nil {
		return nil, err
	}
	e.warnIfReadable(path, "PIN")
	pin := bytes.TrimSuffix(b, []byte("\n"))
	if len(pin) == 0 {
		return nil, UsageErrorf("the PIN is empty")
	}
	return pin, nil
}

// tpmSecret is that of --tpm2; none without it.
func (e *Env) tpmSecret(c *cli.Context) ([]crypt.Secret, error) {
	t, pin, err := e.tpmFlagValues(c, "")
	if err != nil || t == nil {
		return nil, err
	}
	defer clear(pin)
	o, err := t.options()
	if err != nil {
		return nil, err
	}
	s, err := tpmslot.New(o, pin)
	if err != nil {
		return nil, err
	}
	return []crypt.Secret{s}, nil
}
