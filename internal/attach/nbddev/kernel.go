package nbddev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// answerTimeout bounds how long the kernel may take to answer a message. What
// takes longest is DISCONNECT, which waits for its own threads.
const answerTimeout = 60 * time.Second

// Kernel is the kernel that has the devices. Its methods may be called at the same
// time.
type Kernel struct {
	sys, dev string // where sysfs and the device nodes are
	dial     func() (*genetlink.Conn, error)
	modprobe func(ctx context.Context) error
}

// This is the kernel that this process runs on.
func This() *Kernel {
	return &Kernel{
		sys: "/sys", dev: "/dev",
		dial:     dial,
		modprobe: modprobe,
	}
}

// dial opens a connection on which nothing waits for ever.
func dial() (*genetlink.Conn, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Load makes sure that there are network block devices: it loads the module where
// it may. The error is ErrNoModule.
func (k *Kernel) Load(ctx context.Context) error {
	if k.loaded() {
		return nil
	}
	if os.Geteuid() != 0 {
		return ErrNoModule
	}
	if err := k.modprobe(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrNoModule, err)
	}
	if !k.loaded() {
		return ErrNoModule
	}
	return nil
}

// loaded looks for the module, and for devices where it is built in.
func (k *Kernel) loaded() bool {
	for _, path := range []string{"module/nbd", "block/nbd0"} {
		if _, err := os.Stat(filepath.Join(k.sys, path)); err == nil {
			return true
		}
	}
	return false
}

func modprobe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "modprobe", "nbd")
	cmd.Env = []string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin"}
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("modprobe nbd: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}

// family opens a connection to the nbd family. The error is ErrNoModule or
// ErrNoNetlink when it is not there.
func (k *Kernel) family() (*genetlink.Conn, genetlink.Family, error) {
	c, err := k.dial()
	if err != nil {
		return nil, genetlink.Family{}, fmt.Errorf("netlink: %w", err)
	}
	family, err := c.GetFamily(familyName)
	if err == nil {
		return c, family, nil
	}
	c.Close()
	switch {
	case !errors.Is(err, fs.ErrNotExist):
		return nil, family, fmt.Errorf("netlink family %s: %w", familyName, err)
	case k.loaded():
		return nil, family, ErrNoNetlink
	}
	return nil, family, ErrNoModule
}

// ask sends one message and returns the first answer. Each has a connection of its
// own: an acknowledgement that nobody read cannot be taken for the next answer.
func (k *Kernel) ask(command uint8, data []byte, flags netlink.HeaderFlags) (genetlink.Message, error) {
	c, family, err := k.family()
	if err != nil {
		return genetlink.Message{}, err
	}
	defer c.Close()
	message := genetlink.Message{Header: genetlink.Header{Command: command, Version: version}, Data: data}
	answers, err := c.Execute(message, family.ID, netlink.Request|flags)
	if err != nil {
		return genetlink.Message{}, asOurs(err)
	}
	if len(answers) == 0 { // an acknowledgement alone
		return genetlink.Message{}, nil
	}
	return answers[0], nil
}
