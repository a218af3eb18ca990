//go:build amd64 || cgo

package nbddev_test

import (
	"testing"

	"github.com/fsximg/fsx/internal/attach/nbddev"
	gonbd "github.com/pojntfx/go-nbd/pkg/ioctl"
)

func TestIoctlNumbers(t *testing.T) {
	for name, n := range map[string][2]uint{
		"SET_SOCK":        {nbddev.SetSock, gonbd.NEGOTIATION_IOCTL_SET_SOCK},
		"SET_BLKSIZE":     {nbddev.SetBlockSize, gonbd.NEGOTIATION_IOCTL_SET_BLOCKSIZE},
		"DO_IT":           {nbddev.DoIt, gonbd.NEGOTIATION_IOCTL_DO_IT},
		"SET_TIMEOUT":     {nbddev.SetTimeout, gonbd.NEGOTIATION_IOCTL_SET_TIMEOUT},
		"SET_SIZE_BLOCKS": {nbddev.SetSizeBlocks, gonbd.NEGOTIATION_IOCTL_SET_SIZE_BLOCKS},
		"CLEAR_SOCK":      {nbddev.ClearSock, gonbd.TRANSMISSION_IOCTL_CLEAR_SOCK},
		"DISCONNECT":      {nbddev.DisconnectIt, gonbd.TRANSMISSION_IOCTL_DISCONNECT},
	} {
		if n[0] != n[1] {
			t.Errorf("NBD_%s is %#x, go-nbd has %#x", name, n[0], n[1])
		}
	}
}
