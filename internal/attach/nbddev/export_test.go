package nbddev

import (
	"context"

	"github.com/mdlayher/genetlink"
)

// Numbers that tests compare with the header's and go-nbd's.
const (
	SetSock       = nbdSetSock
	SetBlockSize  = nbdSetBlockSize
	DoIt          = nbdDoIt
	ClearSock     = nbdClearSock
	SetSizeBlocks = nbdSetSizeBlocks
	SetTimeout    = nbdSetTimeout
	DisconnectIt  = nbdDisconnect
)

var (
	ParseIndex  = parseIndex
	ParseStatus = parseStatus
)

// NewKernel is a kernel whose files are in sys and dev, and that answers by dial.
func NewKernel(sys, dev string, dial func() (*genetlink.Conn, error), modprobe func(context.Context) error) *Kernel {
	return &Kernel{sys: sys, dev: dev, dial: dial, modprobe: modprobe}
}
